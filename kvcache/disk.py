"""The tier of pages on a disk: a thread that writes, a thread that reads, and an engine that waits for neither."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from kvcache.page_file import Label, NotThePage
from kvcache.page_folder import PageFolder, reason
from kvcache.tier import KEY, Fetched, TierState

_log = logging.getLogger(__name__)

# Bytes of pages that wait to be written, and of pages that were read and not yet handed over. Pages are written many
# times faster than they are computed; where a disk is slower than that, they are better forgotten than piled up.
WAITING = 64 * 2**20
ARRIVED = 64 * 2**20

RETRY = 60.0  # seconds until a disk that failed is tried again: what ends such a state is a person, or time
CLOSING = 10.0  # seconds in which close writes what waits


class DiskTier:
    """A page is waiting to be written, or in the folder, or not here. Each fetch is answered once.

    The engine's thread calls. What it shares with the threads of the tier is under one lock, which is never held while
    a disk is asked.
    """

    def __init__(self, folder: PageFolder, page_bytes: int) -> None:
        self._folder, self._page_bytes = folder, page_bytes
        self._lock = threading.Lock()
        self._to_write, self._to_read, self._to_hand_over, self._written = (
            threading.Condition(self._lock) for _ in range(4)
        )
        self._waiting: dict[bytes, tuple[Label, bytes]] = {}  # in order; the first is being written
        self._used: set[bytes] = set()  # to be noted in the folder
        self._asked: deque[Label] = deque()
        self._reading = False
        self._arrived: list[Fetched] = []
        self._stored = self._restored = self._refused = 0
        self._off: str | None = None
        self._retry = 0.0
        self._warned: set[str] = set()
        self._leave: float | None = None  # once closed: when the writer drops what waits
        if page_bytes >= folder.budget:
            with self._lock:
                self._switch_off(f"a page takes {page_bytes} bytes, and the budget is {folder.budget}", math.inf)
        self._threads = [self._start("kv-writer", self._write_pages), self._start("kv-reader", self._read_pages)]

    @classmethod
    def open(cls, folder: Path, budget: int, page_bytes: int) -> Self:
        """Over a folder that is made if missing; an EngineError says why that cannot be."""
        return cls(PageFolder.open(folder, budget), page_bytes)

    def holds(self, key: bytes) -> bool:
        with self._lock:
            return key in self._waiting or self._folder.holds(key)

    def store(self, key: bytes, parent: bytes, tokens: bytes, content: bytes) -> bool:
        assert len(key) == len(parent) == KEY, "not a key"
        label = Label(key, parent, tokens, self._page_bytes)
        with self._lock:
            if key in self._waiting or self._folder.holds(key):
                return True
            if not self._takes(label):
                return False
            self._waiting[key] = label, content
            self._to_write.notify()
            return True

    def room(self, wait: float) -> bool:
        with self._lock:
            self._written.wait_for(lambda: self._has_room or not self._stores, wait)
            return self._has_room and self._stores

    def use(self, key: bytes) -> None:
        """It was of use, though it did not have to be read; so it stays longer, and with it what it continues."""
        with self._lock:
            if self._folder.holds(key):
                self._used.add(key)
                self._to_write.notify()

    def fetch(self, key: bytes, parent: bytes, tokens: bytes) -> None:
        label = Label(key, parent, tokens, self._page_bytes)
        with self._lock:
            waiting, content = self._waiting.get(key, (None, b""))
            if self._leave is not None:
                self._arrived.append(Fetched(key, None))
            elif waiting == label:
                self._restored += 1
                self._arrived.append(Fetched(key, content))
            else:
                self._asked.append(label)
                self._to_read.notify()

    def fetched(self, wait: float = 0) -> list[Fetched]:
        """Nothing is waited for when no fetch is open."""
        with self._lock:
            self._to_hand_over.wait_for(lambda: self._arrived or not (self._asked or self._reading), wait)
            arrived, self._arrived = self._arrived, []
            self._to_read.notify()  # there is room
            return arrived

    def state(self) -> TierState:
        with self._lock:
            return TierState(
                self._folder.pages,
                self._folder.taken,
                self._folder.budget,
                self._stored,
                self._restored,
                self._refused,
                self._off,
            )

    def close(self) -> None:
        """Open fetches are not answered any more."""
        with self._lock:
            self._leave = self._leave or time.monotonic() + CLOSING
            self._asked.clear()
            for condition in (self._to_write, self._to_read, self._to_hand_over):
                condition.notify_all()
        for thread in self._threads:  # they are daemons: one that a dead disk keeps does not keep the process
            thread.join(max(0.0, self._leave + 1 - time.monotonic()))

    def check(self) -> None:
        """The law of the class holds, and the index is true to itself."""
        with self._lock:
            assert len(self._waiting) <= max(1, WAITING // self._page_bytes), "more waits than may"
            assert all(key == label.key for key, (label, _) in self._waiting.items()), "a page under another's key"
            self._folder.check()

    def _start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _takes(self, label: Label) -> bool:
        if self._leave is not None or label.file_bytes > self._folder.budget:
            return False
        if self._off is not None:  # one page finds out whether the disk is well again
            return not self._waiting and time.monotonic() >= self._retry
        return self._has_room

    @property
    def _has_room(self) -> bool:
        return not self._waiting or (len(self._waiting) + 1) * self._page_bytes <= WAITING

    @property
    def _stores(self) -> bool:
        return self._leave is None and self._off is None

    def _write_pages(self) -> None:
        self._done(self._folder.make_room)  # the budget may have been larger last time
        while self._stays():
            self._note_uses()
            key = self._next_to_write()
            if key is not None and self._done(partial(self._folder.write, *self._waiting[key])):
                self._wrote(key)
        self._note_uses()

    def _stays(self) -> bool:
        """Waits for something to do; there may be nothing when the tier is closed."""
        with self._lock:
            self._to_write.wait_for(lambda: self._waiting or self._used or self._leave is not None)
            if self._leave is not None and time.monotonic() > self._leave:
                self._waiting.clear()
            return self._leave is None or bool(self._waiting)

    def _next_to_write(self) -> bytes | None:
        with self._lock:
            return next(iter(self._waiting), None)

    def _note_uses(self) -> None:
        with self._lock:
            used, self._used = self._used, set()
        for key in used:
            self._folder.use(key)

    def _done(self, work: Callable[[], None]) -> bool:
        """Whether the disk took it. If not, what waits is dropped and storing is off for a while."""
        try:
            work()
        except Exception as fault:
            if not isinstance(fault, OSError):
                _log.exception("the disk tier failed")  # a defect of ours, and no reason to serve nobody
            with self._lock:
                self._waiting.clear()
                self._switch_off(reason(fault), time.monotonic() + RETRY)
            return False
        return True

    def _wrote(self, key: bytes) -> None:
        with self._lock:
            del self._waiting[key]
            self._stored += 1
            self._written.notify()
            if self._off is not None:
                _log.info("%s takes pages again", self._folder.folder)
                self._off = None

    def _switch_off(self, why: str, until: float) -> None:
        if why not in self._warned:
            _log.warning("%s takes no pages, and those in it can be read: %s", self._folder.folder, why)
        self._warned.add(why)
        self._off, self._retry = why, until
        self._written.notify()

    def _read_pages(self) -> None:
        while (label := self._next_to_read()) is not None:
            self._answer(label.key, self._content(label))

    def _next_to_read(self) -> Label | None:
        """None when it is time to leave."""
        room = max(1, ARRIVED // self._page_bytes)
        with self._lock:
            self._to_read.wait_for(lambda: self._leave or (self._asked and len(self._arrived) < room))
            if self._leave is not None:
                return None
            self._reading = True
            return self._asked.popleft()

    def _content(self, label: Label) -> bytes | None:
        try:
            return self._folder.read(label)
        except NotThePage:
            with self._lock:
                self._refused += 1
        except Exception:  # a defect of ours, or no memory; whoever asked computes the page instead
            _log.exception("a page could not be read")
        return None

    def _answer(self, key: bytes, content: bytes | None) -> None:
        with self._lock:
            self._reading = False
            self._restored += content is not None
            self._arrived.append(Fetched(key, content))
            self._to_hand_over.notify()
