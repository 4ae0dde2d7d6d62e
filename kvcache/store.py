"""Where pages lie, seen from the cache: bytes that are copied, read and written while no pass runs."""

from typing import Protocol


class PageStore(Protocol):
    """The content of the pages of all layers."""

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers."""
        ...

    def copy(self, source: int, target: int) -> None: ...
    def read(self, page: int) -> bytes:
        """page_bytes of them."""
        ...

    def write(self, page: int, content: bytes) -> None: ...
