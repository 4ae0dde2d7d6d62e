"""Laws of the disk tier while all is well: what it took comes back, within the budget, and no other file is touched."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvcache.page_folder
from kvcache import disk, page_file
from kvcache.cache import PageCache
from kvcache.disk import DiskTier
from kvcache.pages import PAGE
from kvcache.tier import Fetched, Tier
from quant.errors import EngineError
from tests.kvcache.disk_pages import (
    FILE_BYTES,
    LONGEST,
    PAGE_BYTES,
    chain,
    fetched,
    page,
    settled,
    store,
    until,
    used_bytes,
    written,
)
from tests.kvcache.written import WrittenPages, compute

BUDGET = 1 << 30


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    opened = DiskTier.open(tmp_path / "pages", BUDGET, PAGE_BYTES)
    yield opened
    opened.close()


class Stuck:
    """A disk that takes nothing until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self._write = page_file._write
        monkeypatch.setattr(page_file, "_write", self._wait)

    def _wait(self, fd: int, parts: list[bytes]) -> None:
        self.asked.set()
        assert self.go_on.wait(LONGEST)
        self._write(fd, parts)


def protocol(tier: DiskTier) -> Tier:
    """It is one: mypy checks this line."""
    return tier


def test_what_was_stored_comes_back_after_a_restart(tmp_path: Path) -> None:
    pages = chain(20)
    written(tmp_path, pages)
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert all(tier.holds(stored.key) for stored in pages)
    assert [fetched(tier, stored) for stored in pages] == [stored.content for stored in pages]
    state = tier.state()
    assert (state.pages, state.bytes, state.restored, state.refused) == (20, 20 * FILE_BYTES, 20, 0)
    tier.close()


def test_many_fetches_are_each_answered_once(tmp_path: Path) -> None:
    pages = chain(50)
    written(tmp_path, pages[::2])
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    for stored in pages + pages:
        tier.fetch(stored.key, stored.parent, stored.tokens)
    answers: list[Fetched] = []
    while len(answers) < 100:
        news = tier.fetched(LONGEST)
        assert news, "an answer is missing"
        answers += news
    due = [(stored.key, None if i % 2 else stored.content) for i, stored in enumerate(pages)]
    assert [(answer.key, answer.content) for answer in answers] == due + due
    assert tier.fetched(LONGEST) == []
    tier.close()


def test_answers_that_nobody_takes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "ARRIVED", 3 * PAGE_BYTES)
    pages = chain(10)
    written(tmp_path, pages)
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    for stored in pages:
        tier.fetch(stored.key, stored.parent, stored.tokens)
    until(lambda: len(tier._arrived) == 3)
    got: list[bytes | None] = []
    while len(got) < 10:
        news = tier.fetched(LONGEST)
        assert 0 < len(news) <= 3
        got += [answer.content for answer in news]
    assert got == [stored.content for stored in pages]
    tier.close()


def test_a_page_on_its_way_is_there_already(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Stuck(monkeypatch)
    one = page(1)
    assert store(tier, one)
    assert slow.asked.wait(LONGEST)
    assert tier.holds(one.key)
    assert fetched(tier, one) == one.content
    assert store(tier, one)
    assert tier.state().stored == 0
    slow.go_on.set()
    settled(tier)
    assert tier.state().stored == 1


def test_a_page_that_is_there_is_not_written_again(tier: DiskTier) -> None:
    one = page(1)
    assert store(tier, one)
    settled(tier)
    assert store(tier, one)
    settled(tier)
    assert tier.state().stored == 1


def test_no_more_waits_than_may(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITING", 4 * PAGE_BYTES)
    slow = Stuck(monkeypatch)
    assert [store(tier, stored) for stored in chain(6)] == [True] * 4 + [False] * 2
    tier.check()
    slow.go_on.set()
    settled(tier)
    assert store(tier, page(77))


def test_who_leaves_can_wait_for_room(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITING", 4 * PAGE_BYTES)
    assert tier.room(0)
    slow = Stuck(monkeypatch)
    assert all(store(tier, stored) for stored in chain(4))
    assert not tier.room(0)
    slow.go_on.set()
    assert tier.room(LONGEST)


def test_a_cache_that_leaves_stores_more_than_may_wait_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = WrittenPages(64)
    monkeypatch.setattr(disk, "WAITING", 4 * memory.page_bytes)
    cache = PageCache(64, memory, DiskTier.open(tmp_path, BUDGET, memory.page_bytes))
    tokens = list(range(50 * PAGE))
    lease = cache.open("")
    compute(cache, memory, lease, tokens, len(tokens))
    cache.close(lease)
    cache.shut()
    state = cache.tier_state()
    assert state is not None
    assert state.pages == 50


def test_an_unknown_page_is_a_miss_and_nothing_was_refused(tier: DiskTier) -> None:
    assert not tier.holds(page(1).key)
    assert fetched(tier, page(1)) is None
    assert tier.state().refused == 0


def test_no_fetch_is_no_wait(tier: DiskTier) -> None:
    assert tier.fetched(3600) == []


def test_close_writes_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Stuck(monkeypatch)
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    pages = chain(30)
    assert all(store(tier, stored) for stored in pages)
    slow.go_on.set()
    tier.close()
    assert tier.state().stored == 30
    assert all(stored.file(tmp_path).exists() for stored in pages)
    assert not any(thread.is_alive() for thread in tier._threads)


def test_a_closed_tier_takes_nothing_and_answers_with_misses(tmp_path: Path) -> None:
    written(tmp_path, [page(1)])
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    tier.close()
    tier.close()
    assert not store(tier, page(2))
    assert fetched(tier, page(1)) is None


def test_close_gives_a_dead_disk_up(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Stuck(monkeypatch)
    monkeypatch.setattr(disk, "CLOSING", -0.9)  # 0.1 s until the threads are left to themselves
    assert all(store(tier, stored) for stored in chain(3))
    assert slow.asked.wait(LONGEST)
    tier.close()
    slow.go_on.set()
    for thread in tier._threads:
        thread.join(LONGEST)
    assert tier.state().stored == 1, "the page being written is finished, the others are given up"


def test_a_process_that_forgets_to_close_can_leave(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.kvcache.disk_pages import *
tier = DiskTier.open(Path({str(tmp_path)!r}), 1 << 30, PAGE_BYTES)
store(tier, page(1))
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=LONGEST)


# --- the budget ---


def test_the_folder_never_exceeds_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 10 * FILE_BYTES + 100
    seen = []
    whole = page_file._write

    def looked(fd: int, parts: list[bytes]) -> None:
        whole(fd, parts)
        seen.append(used_bytes(tmp_path))

    monkeypatch.setattr(page_file, "_write", looked)
    tier = DiskTier.open(tmp_path, budget, PAGE_BYTES)
    pages = [page(number) for number in range(40)]
    for stored in pages:
        assert store(tier, stored)
    settled(tier)
    assert len(seen) == 40
    assert max(seen) <= budget
    assert tier.state().bytes == used_bytes(tmp_path) == 10 * FILE_BYTES
    assert [tier.holds(stored.key) for stored in pages] == [False] * 30 + [True] * 10
    tier.close()


def test_what_was_read_stays_longer(tmp_path: Path) -> None:
    pages = [page(number) for number in range(10)]
    written(tmp_path, pages)
    tier = DiskTier.open(tmp_path, 10 * FILE_BYTES, PAGE_BYTES)
    assert fetched(tier, pages[0]) == pages[0].content
    assert store(tier, page(100))
    settled(tier)
    assert [tier.holds(stored.key) for stored in pages[:3]] == [True, False, True]
    tier.close()


def test_what_was_of_use_in_memory_stays_longer(tmp_path: Path) -> None:
    pages = [*chain(3), page(10)]
    written(tmp_path, pages)
    for age, stored in enumerate(pages):
        os.utime(stored.file(tmp_path), (age, age))
    before = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    before.use(pages[2].key)
    before.use(page(99).key)
    before.close()
    tier = DiskTier.open(tmp_path, 3 * FILE_BYTES, PAGE_BYTES)
    until(lambda: tier.state().pages == 3)
    assert [tier.holds(stored.key) for stored in pages] == [True, True, True, False]
    tier.close()


def test_what_was_read_stays_longer_after_a_restart_too(tmp_path: Path) -> None:
    pages = [page(number) for number in range(5)]
    written(tmp_path, pages)
    for age, stored in enumerate(pages):
        os.utime(stored.file(tmp_path), (0, 1000 - age))
    before = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert fetched(before, pages[4]) == pages[4].content
    before.close()
    tier = DiskTier.open(tmp_path, 2 * FILE_BYTES, PAGE_BYTES)
    until(lambda: tier.state().pages == 2)
    assert [tier.holds(stored.key) for stored in pages] == [True, False, False, False, True]
    tier.close()


def test_the_beginning_of_a_prefix_outlives_its_rest(tmp_path: Path) -> None:
    """Its first pages are seldom read from the disk, since they hardly ever leave memory."""
    pages = chain(8)
    written(tmp_path, pages)
    for age, stored in enumerate(pages):
        os.utime(stored.file(tmp_path), (age, age))
    tier = DiskTier.open(tmp_path, 8 * FILE_BYTES, PAGE_BYTES)
    for number in range(3):
        assert store(tier, page(100 + number))
    settled(tier)
    assert [tier.holds(stored.key) for stored in pages] == [True] * 5 + [False] * 3
    tier.close()


def test_a_smaller_budget_lets_the_oldest_go_at_the_start(tmp_path: Path) -> None:
    written(tmp_path, [page(number) for number in range(10)])
    tier = DiskTier.open(tmp_path, 4 * FILE_BYTES, PAGE_BYTES)
    until(lambda: tier.state().pages == 4)
    assert used_bytes(tmp_path) == 4 * FILE_BYTES
    tier.close()


def test_a_page_larger_than_the_budget_is_never_taken(tmp_path: Path) -> None:
    tier = DiskTier.open(tmp_path, FILE_BYTES - 1, PAGE_BYTES)
    assert not store(tier, page(1))
    tier.close()
    hopeless = DiskTier.open(tmp_path, PAGE_BYTES, PAGE_BYTES)
    assert not store(hopeless, page(1))
    assert hopeless.state().off == "a page takes 4096 bytes, and the budget is 4096"
    hopeless.close()


# --- the folder ---


def test_a_missing_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "pages"
    written(folder, [page(1)])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(page(1).file(folder).stat().st_mode) == 0o600


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"file: not a folder"):
        DiskTier.open(tmp_path / "file", BUDGET, PAGE_BYTES)
    with pytest.raises(EngineError, match=r"below: no pages can be kept there: Not a directory"):
        DiskTier.open(tmp_path / "file" / "below", BUDGET, PAGE_BYTES)
    with pytest.raises(EngineError, match="no pages can be kept there"):
        DiskTier.open(Path("a\0b"), BUDGET, PAGE_BYTES)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(EngineError, match="no pages can be kept there: it may not be read and written"):
        DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)


def test_files_of_other_names_are_never_touched(tmp_path: Path) -> None:
    one, name = page(1), page(3).file(tmp_path).name
    written(tmp_path, [one])
    other = "00" if page(3).key[0] else "01"
    theirs = [
        "notes.txt",
        name,  # not in its subfolder
        f"{other}/{name}",
        f"{name[:2]}/{name}.bak",
        f"{name[:2]}/{name.upper()}",
        f"{name[:64]}.part",
        f"{name[:64]}-{'0' * 16}.part.gz",
        f"{name[:2]}/{name[:64]}-{'0' * 16}.part",
        "zz/notes.page",
    ]
    for path in theirs:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
    roomy = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert (roomy.state().pages, roomy.state().bytes) == (1, FILE_BYTES)
    roomy.close()
    tier = DiskTier.open(tmp_path, FILE_BYTES, PAGE_BYTES)
    assert store(tier, page(2))
    tier.close()
    assert not one.file(tmp_path).exists()
    assert all((tmp_path / path).read_text() == "mine" for path in theirs)


def test_what_is_no_file_is_not_counted(tmp_path: Path) -> None:
    folder, pipe, link = (page(number).file(tmp_path) for number in range(3))
    for place in (folder, pipe, link):
        place.parent.mkdir()
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert tier.state().pages == 0
    tier.close()


def test_a_start_reads_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, chain(20))
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a file was opened"))
    tier = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert tier.state().pages == 20
    tier.close()


def test_what_a_dead_process_left_half_written_is_gone(tmp_path: Path) -> None:
    part = tmp_path / f"{page(1).key.hex()}-{'0' * 16}.part"
    part.write_bytes(b"half")
    DiskTier.open(tmp_path, BUDGET, PAGE_BYTES).close()
    assert not part.exists()


def test_a_second_server_leaves_the_first_its_half_written_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Stuck(monkeypatch)
    first = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert store(first, page(1))
    assert slow.asked.wait(LONGEST)
    second = DiskTier.open(tmp_path, BUDGET, PAGE_BYTES)
    assert len(list(tmp_path.glob("*.part"))) == 1
    slow.go_on.set()
    settled(first)
    assert first.state().stored == 1
    assert fetched(second, page(1)) == page(1).content
    first.close()
    second.close()


def test_a_part_that_another_server_removed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page_file._write
    removed: list[Path] = []

    def once(fd: int, parts: list[bytes]) -> None:
        whole(fd, parts)
        if not removed:
            removed.extend(tmp_path.glob("*.part"))
            removed[0].unlink()

    monkeypatch.setattr(page_file, "_write", once)
    written(tmp_path, [page(1)])
    assert removed
    assert page(1).file(tmp_path).exists()


def test_two_servers_keep_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exceeds it by what it may write before it looks at what the other did."""
    monkeypatch.setattr(kvcache.page_folder, "_LOOKS", 8)
    budget = 16 * FILE_BYTES
    tiers = [DiskTier.open(tmp_path, budget, PAGE_BYTES) for _ in range(2)]
    for number in range(60):
        tier, time = tiers[number % 2], tmp_path.stat().st_mtime_ns
        assert store(tier, page(number))
        settled(tier)
        if tmp_path.stat().st_mtime_ns == time:  # some systems' clocks tick each few milliseconds
            os.utime(tmp_path, ns=(time + 1, time + 1))
        assert used_bytes(tmp_path) <= budget + 2 * (budget // 8 + FILE_BYTES)
    for tier in tiers:
        tier.close()
    last = DiskTier.open(tmp_path, budget, PAGE_BYTES)
    until(lambda: last.state().bytes <= budget)
    last.close()
