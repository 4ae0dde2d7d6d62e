"""Which pages a folder has, in memory: their sizes, when each was used, and which is to go first."""

import heapq
import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Entry(NamedTuple):  # of numbers and bytes only, so that the garbage collector passes ten thousands of them over
    parent: bytes
    size: int
    used: int  # ns since the epoch


class PageIndex:
    """`bytes` is the sum of the sizes of the entries.

    The least recently used goes first of those that no entry continues. A prefix without its first page is worth
    nothing, and that page is read the least, since it hardly ever leaves memory.

    Any thread may ask and change.
    """

    def __init__(self, entries: Iterable[tuple[bytes, Entry]] = ()) -> None:
        self._lock = threading.Lock()
        self._entries = dict(entries)
        self._children = Counter(entry.parent for entry in self._entries.values())
        self.bytes = sum(entry.size for entry in self._entries.values())
        # A heap in which each leaf is found under the time of its last use; what else is in it is passed over.
        self._order = [(entry.used, key) for key, entry in self._entries.items()]
        heapq.heapify(self._order)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: bytes, entry: Entry) -> None:
        """It was used then; it may have been there."""
        with self._lock:
            self._take_out(key)
            self._entries[key] = entry
            self._children[entry.parent] += 1
            self.bytes += entry.size
            self._queue(key)

    def use(self, key: bytes, now: int) -> Entry | None:
        """None if it is not there any more."""
        with self._lock:
            if key in self._entries:
                self._entries[key] = self._entries[key]._replace(used=now)
                self._queue(key)
            return self._entries.get(key)

    def forget(self, key: bytes) -> None:
        with self._lock:
            self._take_out(key)

    def first_to_go(self) -> tuple[bytes, Entry] | None:
        """It stays until it is forgotten."""
        with self._lock:
            while self._order:
                used, key = self._order[0]
                entry = self._entries.get(key)
                if entry is not None and entry.used == used and not self._children[key]:
                    return key, entry
                heapq.heappop(self._order)
            # A circle of parents; keys are digests, so someone made up the names.
            return next(iter(self._entries.items()), None)

    def check(self) -> None:
        """The law of the class holds."""
        assert self.bytes == sum(entry.size for entry in self._entries.values()), "bytes are not the sum of the sizes"
        children = Counter(entry.parent for entry in self._entries.values())
        assert +self._children == children, "a page has more or fewer pages after it than it is said to have"
        for key, entry in self._entries.items():
            assert children[key] or (entry.used, key) in self._order, "a leaf is not in line to go"

    def _take_out(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.size
        self._children[entry.parent] -= 1
        if not self._children[entry.parent]:
            del self._children[entry.parent]
            if entry.parent in self._entries:
                self._queue(entry.parent)  # a leaf again

    def _queue(self, key: bytes) -> None:
        heapq.heappush(self._order, (self._entries[key].used, key))
        if len(self._order) > 4 * len(self._entries) + 64:  # mostly uses that were not the last
            self._order = [(entry.used, key) for key, entry in self._entries.items()]
            heapq.heapify(self._order)
