"""Processes that store and load pages until they are killed; one process forks them all, which is soon done.

Told `store FOLDER FIRST` or `load FOLDER COUNT` in a line, it says `pid N`, then a line for each page that the tier
counts as stored or that came back, and `gone` once the process is dead.
"""

import os
import sys
from itertools import count
from pathlib import Path
from typing import NoReturn

from kvcache.disk import DiskTier
from tests.kvcache.disk_pages import Stored, fetched, page, settled, store

NBYTES = 1 << 16
BUDGET = 1 << 30


def numbered(number: int) -> Stored:
    return page(number, nbytes=NBYTES)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write, so that lines of two processes do not mix


def keep_storing(folder: Path, first: int) -> NoReturn:
    """Two pages at a time are under way, one of which may be half written when the end comes."""
    tier = DiskTier.open(folder, BUDGET, NBYTES)
    said = 0
    for number in count(first):
        assert store(tier, numbered(number))
        stored = tier.state().stored
        for done in range(said, stored):
            say(f"stored {first + done}")
        said = stored
        if number % 8 == 7:
            settled(tier)
    raise AssertionError


def keep_loading(folder: Path, pages: int) -> NoReturn:
    tier = DiskTier.open(folder, BUDGET, NBYTES)
    for number in count():
        one = numbered(number % pages)
        say("right" if fetched(tier, one) == one.content else "WRONG")
    raise AssertionError


def main() -> None:
    for line in sys.stdin:
        what, folder, number = line.split()
        pid = os.fork()
        if pid == 0:
            say(f"pid {os.getpid()}")
            {"store": keep_storing, "load": keep_loading}[what](Path(folder), int(number))
        os.waitpid(pid, 0)
        say("gone")


if __name__ == "__main__":
    main()
