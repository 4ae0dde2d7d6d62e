"""One page in one file: it appears whole or not at all, and is believed only when every byte is as it was written.

    | magic, layout, sizes | key | parent | tokens | SHA-256 of what is before and after | content |

Nothing is flushed to the disk for its own sake. What a killed process wrote is the system's and will be there; what a
power cut tears fails its digest, and is computed again.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
from dataclasses import dataclass

from kvcache.tier import KEY

LAYOUT = 1

_HEAD = struct.Struct(f"<8sIIQ{KEY}s{KEY}s")
_MAGIC = b"PUNAPAGE"
_DIGEST = hashlib.sha256().digest_size

# The last name may be anything: a link is not followed, a pipe does not wait for its writer, a terminal is not taken.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_LOCK = _READ | os.O_RDWR  # a lock over NFS wants a file that may be written
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class NotThePage(Exception):
    """What lies there is not the page that was asked for, or not as it was written."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a page is known by, and how long it is."""

    key: bytes
    parent: bytes
    tokens: bytes
    nbytes: int

    def head(self) -> bytes:
        """How its file begins; each of these bytes must be found there again."""
        fields = _HEAD.pack(_MAGIC, LAYOUT, len(self.tokens), self.nbytes, self.key, self.parent)
        return fields + self.tokens

    @property
    def file_bytes(self) -> int:
        return _HEAD.size + len(self.tokens) + _DIGEST + self.nbytes


def write_page(path: str, part: str, label: Label, content: bytes) -> None:
    """The page is at `path`; `part` was its name until it was whole, and is gone even where this fails."""
    assert len(content) == label.nbytes, "a page of another size"
    head = label.head()
    fd = os.open(part, _CREATE, 0o600)
    try:
        try:
            _lock(fd)
            _write(fd, [head, _digest(head, content), content])
        finally:
            os.close(fd)
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def read_page(path: str, label: Label) -> bytes:
    """The content, of a file that was just used; else NotThePage, or an OSError where the file cannot be opened."""
    fd = os.open(path, _READ)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != label.file_bytes:
            raise NotThePage
        content = _checked(fd, label)
        with contextlib.suppress(OSError):  # a disk that became read-only forgets what was used, and no more
            os.utime(fd)
        return content
    finally:
        os.close(fd)


def abandoned(part: str) -> bool:
    """Whether whoever wrote this file is gone. The system lets go of a lock when a process ends, however it ends."""
    try:
        fd = os.open(part, _LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:  # it is locked, or nothing can be locked here; then no one is said to be gone
        return False
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    # Where it fails, another server may take the file for abandoned; the rename then says that it is gone.
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(fd: int, parts: list[bytes]) -> None:
    left = [memoryview(part) for part in parts]
    while left:
        done = os.writev(fd, left)
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if left:
            left[0] = left[0][done:]


def _checked(fd: int, label: Label) -> bytes:
    head = label.head()
    try:
        front = os.read(fd, len(head) + _DIGEST)
        content = os.read(fd, label.nbytes)
    except OSError as fault:  # a disk that fails here
        raise NotThePage from fault
    if len(content) != label.nbytes or front != head + _digest(head, content):
        raise NotThePage
    return content


def _digest(head: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(head)
    digest.update(content)  # without the interpreter's lock
    return digest.digest()
