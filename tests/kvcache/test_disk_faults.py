"""Laws of the disk tier while things go wrong: never a wrong byte, never an error, and one line in the log."""

import errno
import hashlib
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcache import disk, page_file
from kvcache.disk import DiskTier
from tests.kvcache.disk_pages import (
    FILE_BYTES,
    LONGEST,
    PAGE_BYTES,
    Stored,
    chain,
    fetched,
    page,
    settled,
    store,
    until,
    written,
)

BUDGET = 1 << 30
ONE, OTHER = chain(2)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    """It holds both pages."""
    written(tmp_path, [ONE, OTHER])
    opened = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    yield opened
    opened.close()


# --- what lies on the disk ---


def test_a_flipped_bit_is_a_miss(tier: DiskTier, tmp_path: Path) -> None:
    file, rng = ONE.file(tmp_path), random.Random(4)
    whole = file.read_bytes()
    for round_ in range(1000):
        place = rng.randrange(len(whole) * 8)
        torn = bytearray(whole)
        torn[place // 8] ^= 1 << place % 8
        file.write_bytes(torn)
        assert fetched(tier, ONE) is None
        assert not file.exists()
        assert not tier.holds(ONE.key)
        file.write_bytes(whole)
        assert fetched(tier, ONE) == ONE.content
        assert tier.state().refused == round_ + 1
    assert fetched(tier, OTHER) == OTHER.content


def labelled(
    magic: bytes = page_file._MAGIC,
    layout: int = page_file.LAYOUT,
    key: bytes = ONE.key,
    parent: bytes = ONE.parent,
    tokens: bytes = ONE.tokens,
    nbytes: int = PAGE_BYTES,
    content: bytes = ONE.content,
) -> bytes:
    """The file of ONE with something else in its head, and the digest that goes with it."""
    head = page_file._HEAD.pack(magic, layout, len(tokens), nbytes, key, parent) + tokens
    return head + hashlib.sha256(head + content).digest() + content


def test_the_label_of_these_tests_is_the_true_one(tier: DiskTier, tmp_path: Path) -> None:
    assert labelled() == ONE.file(tmp_path).read_bytes()


FOREIGN = {
    "another key": labelled(key=OTHER.key),
    "another parent": labelled(parent=OTHER.key),
    "other tokens": labelled(tokens=OTHER.tokens),
    "fewer tokens": labelled(tokens=ONE.tokens[:-4]),
    "another size": labelled(nbytes=PAGE_BYTES + 1),
    "a shorter page": labelled(nbytes=PAGE_BYTES - 1, content=ONE.content[:-1]),
    "an older layout": labelled(layout=page_file.LAYOUT - 1),
    "another magic": labelled(magic=b"PUNAPAGF"),
    "the page of another key": labelled(key=OTHER.key, parent=OTHER.parent, tokens=OTHER.tokens, content=OTHER.content),
    "nothing": b"",
    "zeros": bytes(FILE_BYTES),
    "half of it": labelled()[: FILE_BYTES // 2],
    "all but a byte": labelled()[:-1],
    "a byte more": labelled() + b"\0",
    "half of it, then zeros": labelled()[: FILE_BYTES // 2] + bytes(FILE_BYTES - FILE_BYTES // 2),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_is_not_the_page_is_a_miss(tier: DiskTier, tmp_path: Path, content: bytes) -> None:
    refuses(tier, ONE.file(tmp_path), lambda file: file.write_bytes(content))


def link_to_the_page(file: Path) -> None:
    (file.parent / "true").write_bytes(labelled())
    file.symlink_to("true")


def bound_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's name may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("short")
        Path("short").rename(file.name)
    finally:
        os.chdir(here)


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": bound_socket,
    "a link to nothing": lambda file: file.symlink_to("/nowhere"),
    "a link to itself": lambda file: file.symlink_to(file),
    "a link to the page": link_to_the_page,
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("put", IN_ITS_PLACE.values(), ids=IN_ITS_PLACE.keys())
def test_what_is_no_file_is_a_miss(tier: DiskTier, tmp_path: Path, put: Callable[[Path], object]) -> None:
    refuses(tier, ONE.file(tmp_path), put)


def refuses(tier: DiskTier, file: Path, put: Callable[[Path], object]) -> None:
    """With that in its place the page is a miss, and may be stored again."""
    file.unlink()
    put(file)
    assert os.path.lexists(file)
    assert fetched(tier, ONE) is None
    assert not os.path.lexists(file)
    assert tier.state().refused == 1
    assert not tier.holds(ONE.key)
    assert fetched(tier, OTHER) == OTHER.content
    assert store(tier, ONE)
    settled(tier)
    assert fetched(tier, ONE) == ONE.content


def test_a_folder_with_something_in_it_stays(tier: DiskTier, tmp_path: Path) -> None:
    file = ONE.file(tmp_path)
    file.unlink()
    file.mkdir()
    (file / "notes").write_text("mine")
    assert fetched(tier, ONE) is None
    assert tier.state().refused == 1
    assert (file / "notes").read_text() == "mine"


def test_pages_that_someone_deleted_are_misses_and_are_stored_again(tier: DiskTier, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    assert fetched(tier, ONE) is None
    assert tier.state().refused == 0
    assert store(tier, ONE)
    settled(tier)
    assert tier.state().off is None
    assert fetched(tier, ONE) == ONE.content


def test_tokens_that_are_not_those_of_the_key_are_a_miss_even_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is a digest; were two to meet, the tokens would tell."""
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    tier._waiting[ONE.key] = ONE.label, ONE.content
    assert fetched(tier, Stored(ONE.key, ONE.parent, OTHER.tokens, b"")) is None
    assert fetched(tier, Stored(ONE.key, OTHER.parent, ONE.tokens, b"")) is None
    assert fetched(tier, ONE) == ONE.content
    tier._waiting.clear()
    tier.close()


# --- a disk that fails while it is read ---


def test_a_disk_that_cannot_read_is_a_miss(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "read", failing(errno.EIO))
        assert fetched(tier, ONE) is None
    assert tier.state().refused == 1
    assert fetched(tier, OTHER) == OTHER.content


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_a_file_that_cannot_be_opened_now_is_a_miss_and_stays(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", failing(number))
        assert fetched(tier, ONE) is None
    assert tier.state().refused == 0
    assert fetched(tier, ONE) == ONE.content


def test_a_defect_while_reading_is_a_miss(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(page_file, "_checked", defect)
        assert fetched(tier, ONE) is None
    assert fetched(tier, ONE) == ONE.content


def test_a_read_only_disk_still_gives_its_pages(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("utime", "unlink", "rename", "makedirs", "writev"):
        monkeypatch.setattr(os, name, failing(errno.EROFS))
    assert fetched(tier, ONE) == ONE.content


# --- a disk that fails while it is written ---

WRITE_FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.EMFILE]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def half_written(number: int) -> Callable[..., int]:
    """Takes half of what it is given, and nothing after that."""
    whole, calls = os.writev, []

    def write(fd: int, parts: list[memoryview]) -> int:
        calls.append(fd)
        if len(calls) % 2 == 0:
            raise OSError(number, os.strerror(number))
        data = b"".join(parts)
        return whole(fd, [data[: len(data) // 2]])

    return write


@pytest.mark.parametrize("number", WRITE_FAULTS, ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_switches_storing_off(
    tier: DiskTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(os, "writev", half_written(number))
    more = [page(number) for number in range(10, 15)]
    assert store(tier, more[0])
    until(lambda: tier.state().off is not None)
    assert tier.state().off == os.strerror(number)
    assert not store(tier, more[1])
    assert not tier.holds(more[0].key)
    assert store(tier, ONE), "it is there already"
    assert fetched(tier, more[0]) is None
    assert fetched(tier, ONE) == ONE.content
    assert tier.state().stored == 0
    assert not list(tmp_path.glob("*.part"))
    assert warnings(caplog) == [f"{tmp_path} takes no pages, and those in it can be read: {os.strerror(number)}"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["makedirs", "open", "rename"])
def test_a_disk_is_off_wherever_it_fails(
    tier: DiskTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, name, failing(errno.EROFS))
        assert store(tier, page(10))
        until(lambda: tier.state().off is not None)
    assert not list(tmp_path.glob("*.part"))
    assert fetched(tier, ONE) == ONE.content


def test_a_page_that_cannot_be_deleted_keeps_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, [ONE, OTHER])
    tier = DiskTier.open(tmp_path, 2 * FILE_BYTES, PAGE_BYTES)
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    assert store(tier, page(10))
    until(lambda: tier.state().off is not None)
    assert tier.state().pages == 2
    assert tier.state().bytes == 2 * FILE_BYTES
    tier.close()


def test_a_disk_that_is_well_again_takes_pages_with_one_warning_in_all(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "RETRY", 0.0)
    with monkeypatch.context() as full:
        full.setattr(os, "writev", half_written(errno.ENOSPC))
        for number in range(10, 15):
            assert store(tier, page(number)), "one page at a time finds out"
            settled(tier)
            assert tier.state().off == os.strerror(errno.ENOSPC)
    assert store(tier, page(20))
    settled(tier)
    assert tier.state().off is None
    assert tier.state().stored == 1
    assert fetched(tier, page(20)) == page(20).content
    assert len(warnings(caplog)) == 1


def test_a_defect_while_writing_is_no_error(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(page_file, "_write", defect)
    assert store(tier, page(10))
    until(lambda: tier.state().off is not None)
    assert tier.state().off == "MemoryError"
    assert fetched(tier, ONE) == ONE.content


# --- faults that the system makes ---


def run(folder: Path, before: str, *wrapper: str) -> None:
    """In a process of its own: two pages stored, then `before`, then one more; it fails, and the two are there."""
    program = f"""
import os, resource, signal, subprocess
from pathlib import Path
from tests.kvcache.disk_pages import *
folder = Path({str(folder)!r})
pages = chain(40)
def open_tier():
    return DiskTier.open(folder, 1 << 30, PAGE_BYTES)
{before}
for stored in pages:
    assert store(tier, stored) or tier.state().off
    settled(tier)
assert tier.state().off == why, tier.state()
assert not list(folder.glob("*.part"))
there = [stored for stored in pages if tier.holds(stored.key)]
assert 2 <= len(there) < 40, there
assert all(fetched(tier, stored) == stored.content for stored in there)
tier.close()
"""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LONGEST
    )
    assert done.returncode == 0, done.stderr


def test_a_limit_on_the_size_of_files_switches_storing_off(tmp_path: Path) -> None:
    """The system writes half a page and refuses the rest, as a full disk does."""
    before = """
tier = open_tier()
assert store(tier, pages[0]) and store(tier, pages[1])
settled(tier)
resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_BYTES // 2, PAGE_BYTES // 2))
why = "File too large"
"""
    run(tmp_path, before)


ALONE = ("unshare", "--map-root-user", "--mount")


@pytest.fixture
def mounts() -> None:
    """A process may mount file systems of its own."""
    probe = [*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk for himself")


@pytest.mark.usefixtures("mounts")
def test_a_full_disk_switches_storing_off(tmp_path: Path) -> None:
    before = """
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={20 * PAGE_BYTES}", "none", folder], check=True)
tier = open_tier()
why = "No space left on device"
"""
    run(tmp_path, before, *ALONE)


@pytest.mark.usefixtures("mounts")
def test_a_disk_that_became_read_only_switches_storing_off(tmp_path: Path) -> None:
    before = """
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
tier = open_tier()
assert store(tier, pages[0]) and store(tier, pages[1])
settled(tier)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
why = "Read-only file system"
"""
    run(tmp_path, before, *ALONE)


@pytest.mark.usefixtures("mounts")
def test_a_read_only_disk_is_refused_at_the_start(tmp_path: Path) -> None:
    program = f"""
import subprocess
from pathlib import Path
from kvcache.disk import DiskTier
from quant.errors import EngineError
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", {str(tmp_path)!r}], check=True)
try:
    DiskTier.open(Path({str(tmp_path)!r}), 1 << 20, 4096)
except EngineError as error:
    assert "it may not be read and written" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([*ALONE, sys.executable, "-c", program], cwd=ROOT, check=True, timeout=LONGEST)
