"""Pages whose content says by which tokens it was made, and a further tier in memory."""

import hashlib
from collections.abc import Sequence

from kvcache.cache import PageCache
from kvcache.lease import Lease
from kvcache.pages import PAGE
from kvcache.tier import Fetched, TierState


def marks(tokens: Sequence[int]) -> list[bytes]:
    """For each token what its keys and values hang on: it and all before it."""
    mark, made = hashlib.blake2b(digest_size=8), []
    for token in tokens:
        mark.update(token.to_bytes(4, "little"))
        made.append(mark.digest())
    return made


class WrittenPages:
    """A PageStore; what was never written is junk."""

    page_bytes = 8 * PAGE

    def __init__(self, pages: int) -> None:
        self.slots = [[b"junk    "] * PAGE for _ in range(pages)]

    def copy(self, source: int, target: int) -> None:
        self.slots[target] = list(self.slots[source])

    def read(self, page: int) -> bytes:
        return b"".join(self.slots[page])

    def write(self, page: int, content: bytes) -> None:
        self.slots[page] = [content[i : i + 8] for i in range(0, len(content), 8)]

    def compute(self, pages: Sequence[int], tokens: Sequence[int], start: int, end: int) -> None:
        for i, mark in list(enumerate(marks(tokens[:end])))[start:]:
            self.slots[pages[i // PAGE]][i % PAGE] = mark

    def holds(self, lease: Lease, tokens: Sequence[int]) -> bool:
        """The lease's pages hold what its tokens make."""
        found = [self.slots[lease.pages[i // PAGE]][i % PAGE] for i in range(lease.filled)]
        return found == marks(tokens[: lease.filled])


class MemoryTier:
    """A Tier; `late` fetches wait until they are let through, `lossy` keys come back as misses."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []
        self.used: list[bytes] = []
        self.full = False
        self.lossy = False

    def holds(self, key: bytes) -> bool:
        return key in self.kept

    def store(self, key: bytes, parent: bytes, tokens: bytes, content: bytes) -> bool:
        if not self.full:
            self.kept[key] = content
        return not self.full

    def room(self, wait: float) -> bool:
        return not self.full

    def use(self, key: bytes) -> None:
        self.used.append(key)

    def fetch(self, key: bytes, parent: bytes, tokens: bytes) -> None:
        self.asked.append(key)

    def fetched(self, wait: float = 0) -> list[Fetched]:
        if self.lossy:
            self.kept.clear()
        asked, self.asked = self.asked, []
        return [Fetched(key, self.kept.get(key)) for key in asked]

    def state(self) -> TierState:
        return TierState(len(self.kept), 0, 0, 0, 0, 0, None)

    def close(self) -> None: ...


def compute(cache: PageCache, store: WrittenPages, lease: Lease, tokens: Sequence[int], end: int) -> None:
    """The lease has pages for, and the keys and values of, its first `end` tokens."""
    cache.grow(lease, end)
    store.compute(lease.pages, tokens, lease.filled, end)
    cache.fill(lease, tokens, end)
