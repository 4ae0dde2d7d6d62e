"""Where pages go when memory has no room for them, and come back from: what the cache asks of such a place."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

KEY = 32  # bytes


def root_key(identity: bytes, salt: bytes) -> bytes:
    """The key of no tokens at all: of a model, its arithmetic and layout, and a salt."""
    return hashlib.blake2b(salt, digest_size=KEY, key=hashlib.blake2b(identity, digest_size=KEY).digest()).digest()


def page_key(parent: bytes, tokens: bytes) -> bytes:
    """The key of a whole page after that parent; tokens are int32, little-endian."""
    return hashlib.blake2b(tokens, digest_size=KEY, key=parent).digest()


@dataclass(frozen=True)
class Fetched:
    """What became of a fetch; no content is a miss, whatever the cause."""

    key: bytes
    content: bytes | None


@dataclass(frozen=True)
class TierState:
    pages: int
    bytes: int
    budget: int
    stored: int
    restored: int
    refused: int  # contents that were not what they should be
    off: str | None  # why it stores nothing any more


class Tier(Protocol):
    """Pages by key. Nothing here waits for a disk: its own threads do, and a fault there is a miss, never an error."""

    def holds(self, key: bytes) -> bool:
        """It is worth a fetch."""
        ...

    def store(self, key: bytes, parent: bytes, tokens: bytes, content: bytes) -> bool:
        """Whether it was taken (to be written soon); not when too much is waiting already, or the tier is off."""
        ...

    def room(self, wait: float) -> bool:
        """Whether it takes pages; where only too much is waiting already, that may come within so many seconds."""
        ...

    def use(self, key: bytes) -> None:
        """The page was of use, and so were those before it, though nobody had to fetch them."""
        ...

    def fetch(self, key: bytes, parent: bytes, tokens: bytes) -> None:
        """Its content, or a miss, is among `fetched` later."""
        ...

    def fetched(self, wait: float = 0) -> list[Fetched]:
        """What arrived since the last call; waits up to so many seconds for the first."""
        ...

    def state(self) -> TierState: ...
    def close(self) -> None:
        """What was taken is written, and the threads are gone."""
        ...
