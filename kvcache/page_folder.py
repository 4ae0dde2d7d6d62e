"""Page files in a folder: read and written by key, and within a budget.

    FOLDER/3f/KEY-PARENT.page       keys in hexadecimal; 3f is how this one begins
    FOLDER/KEY-RANDOM.part          a page that is being written

A name says all that the order of leaving needs, so that no file is read at the start.
The folder is the user's: a file of any other name is never touched. Several processes may share it; each looks anew at
what the others did whenever it has written a small share of the budget. That others are there shows in the time of the
folder, which changes with every part.
"""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from kvcache.page_file import Label, NotThePage, abandoned, read_page, write_page
from kvcache.page_index import Entry, PageIndex
from quant.errors import EngineError

_FAN = re.compile(r"[0-9a-f]{2}")
_PAGE = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.page")
_PART = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.part")

# A look costs some microseconds a file, and the interpreter's lock at each. With one for each 64th of the budget a page
# costs as much as 64 files; of the processes that share a folder, each but one may exceed the budget by that share.
_LOOKS = 64

# These say nothing of the file: too many are open, no memory, no right to read.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


class PageFolder:
    """The pages of a folder never take more than the budget, once make_room was called, but for the one being written.

    One thread writes and makes room, another may read, and any may ask.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self._root = os.fspath(folder)
        self._index = PageIndex(_files(self._root))
        self._unseen = 0  # bytes written since the last look
        self._changed = self._change()
        self._shared = False  # another process wrote since then

    @classmethod
    def open(cls, folder: Path, budget: int) -> Self:
        """The folder is made if missing. What a killed process had half written is gone."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it may not be read and written")
            opened = cls(folder, budget)
            _sweep(opened._root)
        except FileExistsError as fault:
            raise EngineError(f"{folder}: not a folder, so no pages can be kept there") from fault
        except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
            raise EngineError(f"{folder}: no pages can be kept there: {reason(fault)}") from fault
        return opened

    @property
    def pages(self) -> int:
        return len(self._index)

    @property
    def taken(self) -> int:  # bytes
        return self._index.bytes

    def holds(self, key: bytes) -> bool:
        return key in self._index

    def read(self, label: Label) -> bytes | None:
        """The content; None where there is no page, or it cannot be opened now. Raises NotThePage, and the file is
        gone, where it is anything else."""
        path = self._path(label.key, label.parent)
        try:
            content = read_page(path, label)
        except FileNotFoundError:
            self._index.forget(label.key)
            return None
        except (OSError, NotThePage) as fault:
            if isinstance(fault, OSError) and fault.errno in _OURS:
                return None
            with suppress(OSError):
                _remove(path)
            self._index.forget(label.key)
            raise NotThePage from fault
        self._index.use(label.key, time.time_ns())
        return content

    def write(self, label: Label, content: bytes) -> None:
        """The page is in the folder, and others have left for it. Raises OSError when the disk does not take it."""
        assert label.file_bytes <= self.budget, "a page larger than the budget"
        self._look_around()
        self.make_room(label.file_bytes)
        try:
            self._write(label, content)
        except FileNotFoundError:
            self._write(label, content)  # another server that started took the part for abandoned: once more
        self._index.add(label.key, Entry(label.parent, label.file_bytes, time.time_ns()))
        self._unseen += label.file_bytes
        self._changed = self._change()

    def use(self, key: bytes) -> None:
        """The page was used now, if it is there."""
        entry = self._index.use(key, time.time_ns())
        if entry is not None:
            with suppress(OSError):  # a disk that became read-only forgets what was used, and no more
                os.utime(self._path(key, entry.parent), follow_symlinks=False)

    def make_room(self, nbytes: int = 0) -> None:
        """The budget has room for so many bytes."""
        while self._index.bytes + nbytes > self.budget:
            first = self._index.first_to_go()
            if first is None:
                return
            key, entry = first
            _remove(self._path(key, entry.parent))
            self._index.forget(key)

    def _look_around(self) -> None:
        """The index is of what is there, if another process wrote and this one did so long enough."""
        self._shared |= self._change() != self._changed
        if self._shared and self._unseen > self.budget // _LOOKS:
            self._index = PageIndex(_files(self._root))
            self._shared, self._unseen = False, 0

    def _change(self) -> int | None:
        """When a part was last made or renamed; None if nothing can be said. Writes within one tick of the clock, some
        milliseconds, look like one; others that go on writing will show with a later one."""
        try:
            return os.stat(self._root).st_mtime_ns
        except OSError:
            return None

    def check(self) -> None:
        """The index agrees with itself."""
        self._index.check()

    def _write(self, label: Label, content: bytes) -> None:
        path = self._path(label.key, label.parent)
        part = f"{self._root}/{label.key.hex()}-{secrets.token_hex(8)}.part"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_page(path, part, label, content)

    def _path(self, key: bytes, parent: bytes) -> str:
        return f"{self._root}/{key[:1].hex()}/{key.hex()}-{parent.hex()}.page"


def reason(fault: Exception) -> str:
    """What went wrong, without the name of a file."""
    return (fault.strerror if isinstance(fault, OSError) else None) or str(fault) or type(fault).__name__


def _files(root: str) -> Iterator[tuple[bytes, Entry]]:
    """Every page by its name. One that leaves meanwhile is none."""
    with os.scandir(root) as fan:
        folders = [entry.path for entry in fan if _FAN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as files:
            for file in files:
                name = _PAGE.fullmatch(file.name)
                if name is None or not folder.endswith(file.name[:2]):
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        entry = Entry(bytes.fromhex(name[2]), status.st_size, status.st_mtime_ns)
                        yield bytes.fromhex(name[1]), entry


def _sweep(root: str) -> None:
    """Nothing is left of writers that are gone."""
    with os.scandir(root) as names:
        parts = [entry.path for entry in names if _PART.fullmatch(entry.name)]
    for part in parts:
        if abandoned(part):
            with suppress(OSError):
                os.unlink(part)


def _remove(path: str) -> None:
    """Nothing is there any more, unless it is a folder with something in it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):  # the latter is what macOS says of a folder
        if not os.path.isdir(path) or os.path.islink(path):
            raise
        with suppress(OSError):
            os.rmdir(path)
