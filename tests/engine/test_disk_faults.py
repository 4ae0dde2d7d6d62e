"""Done to the disk tier under an engine, whatever it is: every answer has the bits it always had, and none is stuck.

PUNA_KILLS says how many engine processes are killed; a few where nobody does.
"""

import asyncio
import errno
import itertools
import logging
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.breaker import Breaker
from engine.client import EngineClient
from engine.messages import EngineSpec, Sampled, Sampling, Submit
from kvcache import page_file
from quant.errors import EngineError
from tests.engine.test_same_bits_cache import CONTEXT, Setting
from tests.tiny_models import write_gguf

KILLS = int(os.environ.get("PUNA_KILLS", "6"))
ROUNDS = 12
POOL = 24  # pages; all prompts together have four times as many
LONGEST = 60.0  # seconds for what takes none

_RNG = random.Random(4)
# With their answers they end where they end alone: in the middle of a page, so that every whole page is asked for.
PROMPTS = [[_RNG.randrange(5, 300) for _ in range(130 + 32 * i)] for i in range(10)]
ASKED = [Submit(i, prompt, Sampling(max_tokens=6, seed=i, logprobs=1)) for i, prompt in enumerate(PROMPTS)]

Answers = list[list[Sampled]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model"), "llama", kind="q8_0", context=CONTEXT)


@pytest.fixture(scope="module")
def answers(path: Path) -> Answers:
    """Of an engine that has room for everything, and no disk."""
    return [answered.tokens for answered in Setting(path).answers(ASKED)]


def restarted(path: Path, disk: Path, pages: int = 256) -> tuple[Answers, Setting]:
    """What a new engine over the folder says, which has left everything there."""
    setting = Setting(path, pages=pages, disk=disk)
    said = [setting.answers([submit])[0].tokens for submit in ASKED]
    while setting.cache.unsettled:
        setting.engine.settle()
    setting.engine.close()
    return said, setting


def flipped(files: Sequence[Path], rng: random.Random) -> int:
    """One bit of each is another; how many files are of no use now."""
    for file in files:
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    return len(files)


def truncated(files: Sequence[Path], rng: random.Random) -> int:
    for file in files:
        os.truncate(file, rng.randrange(file.stat().st_size))
    return len(files)


def swapped(files: Sequence[Path], rng: random.Random) -> int:
    """Each has the content of another."""
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    return len(files)


@pytest.mark.parametrize("spoilt", [flipped, truncated, swapped])
def test_pages_that_were_spoilt_are_computed_again(
    path: Path, answers: Answers, tmp_path: Path, spoilt: Callable[[Sequence[Path], random.Random], int]
) -> None:
    """Each is refused once; the files that were of no use are whole again in the end."""
    said, _ = restarted(path, tmp_path)
    assert said == answers
    rng = random.Random(7)
    whole = sorted(tmp_path.glob("??/*.page"))
    for spoiled in range(ROUNDS):
        number = spoilt(rng.sample(whole, len(whole) * (spoiled % 4 + 1) // 4), rng)
        seen = 0
        while (found := restarted_and_refused(path, tmp_path, answers)) > 0:
            seen += found
        assert seen == number > 0
        assert sorted(tmp_path.glob("??/*.page")) == whole
    _, setting = restarted(path, tmp_path)
    assert setting.tier is not None
    assert setting.tier.state().restored == len(whole)


def restarted_and_refused(path: Path, disk: Path, answers: Answers) -> int:
    said, setting = restarted(path, disk)
    assert said == answers
    assert setting.tier is not None
    return setting.tier.state().refused


def filling(room: int) -> Callable[[int, list[bytes]], None]:
    """Writes of pages as they are, until a disk has taken so many; of the next it takes half."""
    write, written = page_file._write, itertools.count()

    def fill(fd: int, parts: list[bytes]) -> None:
        if next(written) < room:
            write(fd, parts)
            return
        os.write(fd, parts[-1][: len(parts[-1]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fill


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("room", [0, 1, 7, 30])
def test_a_disk_that_fills_up_is_told_of_once_and_all_are_answered(
    path: Path,
    answers: Answers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
) -> None:
    monkeypatch.setattr(page_file, "_write", filling(room))
    for _ in range(2):
        said, setting = restarted(path, tmp_path, POOL)
        assert said == answers
        assert setting.tier is not None
        assert setting.tier.state().off == os.strerror(errno.ENOSPC)
    assert len(list(tmp_path.glob("??/*.page"))) == room
    assert not list(tmp_path.glob("*.part"))
    assert [os.strerror(errno.ENOSPC) in line for line in warnings(caplog)] == [True] * 2, "one for each start"


def test_a_disk_that_became_read_only_is_told_of_once_and_still_read(
    path: Path, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(path, pages=POOL, disk=tmp_path)
    for submit in ASKED[::2]:
        setting.answers([submit])
    while setting.cache.unsettled:
        setting.engine.settle()

    def read_only(fd: int, parts: list[bytes]) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(page_file, "_write", read_only)
    assert [answered.tokens for answered in setting.answers(ASKED)] == answers
    setting.engine.close()
    assert setting.tier is not None
    assert setting.tier.state().restored > 0
    assert [os.strerror(errno.EROFS) in line for line in warnings(caplog)] == [True]


def test_kills_at_any_moment_of_spilling_and_restoring(path: Path, answers: Answers, tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(killed_again_and_again(path, answers, tmp_path), LONGEST + KILLS * LONGEST))


async def killed_again_and_again(path: Path, answers: Answers, disk: Path) -> None:
    spec = EngineSpec(
        path=str(path), device="cpu", threads=1, context=512, cache_tokens=POOL * 32, kv_disk=str(disk), max_batch=4
    )
    client = await EngineClient.start(spec, breaker=Breaker(deaths=10 * KILLS))
    rng, restored, lost = random.Random(3), 0, 0
    try:
        for _ in range(KILLS):
            assert await asyncio.wait_for(tokens(client, ASKED[0]), LONGEST) == answers[0]
            order = rng.sample(ASKED, len(ASKED))
            asking = [asyncio.create_task(tokens(client, submit)) for submit in order]
            await asyncio.sleep(rng.random() * 0.1)
            state = (await client.report()).cache.disk
            assert state is not None
            restored += state.restored
            killed = client.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            said = await asyncio.wait_for(asyncio.gather(*asking), LONGEST)
            lost += said.count(None)
            assert all(one in (None, answers[submit.id]) for submit, one in zip(order, said, strict=True))
            await asyncio.wait_for(another(client, killed), LONGEST)
        assert [await asyncio.wait_for(tokens(client, submit), LONGEST) for submit in ASKED] == answers
        report = await client.report()
        assert (report.requests, report.cache.held) == ((), 0)
        assert report.cache.disk is not None
        assert report.cache.disk.refused == 0, "half a page was taken for a page"
        assert restored > 0, "no kill came after a page was restored"
        assert lost > 0, "no kill came while there was work"
    finally:
        await client.close()


async def another(client: EngineClient, killed: int) -> None:
    """There is another engine. A death is noticed a moment later, and what is asked in that moment is lost with it."""
    while client.pid == killed or not client.alive:
        await asyncio.sleep(0.005)


async def tokens(client: EngineClient, asked: Submit) -> list[Sampled] | None:
    """The answer, if the engine lived so long."""
    try:
        answer = client.submit(asked.prompt, asked.sampling)
        return [token async for delta in answer for token in delta.tokens]
    except EngineError:
        return None
