"""Pages for tests of the disk tier: chains of them with contents that their keys tell, and ways to wait."""

import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvcache.disk import DiskTier
from kvcache.page_file import Label
from kvcache.tier import page_key, root_key

PAGE_BYTES = 4096
ROOT = root_key(b"model", b"salt")
LONGEST = 60.0  # seconds; only a defect takes them


@dataclass(frozen=True)
class Stored:
    key: bytes
    parent: bytes
    tokens: bytes
    content: bytes

    @property
    def label(self) -> Label:
        return Label(self.key, self.parent, self.tokens, len(self.content))

    def file(self, folder: Path) -> Path:
        return folder / self.key[:1].hex() / f"{self.key.hex()}-{self.parent.hex()}.page"


def page(number: int, parent: bytes = ROOT, nbytes: int = PAGE_BYTES) -> Stored:
    tokens = random.Random(number).randbytes(128)
    key = page_key(parent, tokens)
    return Stored(key, parent, tokens, random.Random(key).randbytes(nbytes))


def chain(count: int, first: int = 0) -> list[Stored]:
    """Pages of which each continues the one before."""
    pages: list[Stored] = []
    for number in range(count):
        pages.append(page(first + number, pages[-1].key if pages else ROOT))
    return pages


FILE_BYTES = page(0).label.file_bytes


def store(tier: DiskTier, stored: Stored) -> bool:
    return tier.store(stored.key, stored.parent, stored.tokens, stored.content)


def fetched(tier: DiskTier, stored: Stored) -> bytes | None:
    """What one fetch is answered with."""
    tier.fetch(stored.key, stored.parent, stored.tokens)
    (answer,) = tier.fetched(LONGEST)
    assert answer.key == stored.key
    return answer.content


def until(holds: Callable[[], bool]) -> None:
    """Looks again and again: a thread is at work."""
    end = time.monotonic() + LONGEST
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.0005)


def settled(tier: DiskTier) -> None:
    """Nothing waits to be written."""
    until(lambda: not tier._waiting)
    tier.check()


def written(folder: Path, pages: list[Stored], budget: int = 1 << 30) -> None:
    """A tier that was here before left these."""
    tier = DiskTier.open(folder, budget, PAGE_BYTES)
    assert all(store(tier, stored) for stored in pages)
    tier.close()
    assert tier.state().stored == len(pages)


def used_bytes(folder: Path) -> int:
    """Of all regular files there."""
    paths = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    states = [path.lstat() for path in paths]
    return sum(state.st_size for state in states if stat.S_ISREG(state.st_mode))
