"""Law of the disk tier under kill -9: what it counted as stored is there with the right bytes, and nothing else is."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache.disk import DiskTier
from tests.kvcache.disk_child import BUDGET, NBYTES, numbered
from tests.kvcache.disk_pages import LONGEST, fetched

KILLS = 100
ROOT = Path(__file__).parents[2]


class Victims:
    """Processes that are killed one after the other at random moments."""

    def __init__(self, zygote: "subprocess.Popen[str]") -> None:
        assert zygote.stdin
        assert zygote.stdout
        self._ask, self._said = zygote.stdin, zygote.stdout
        self._rng = random.Random(8)

    def killed(self, order: str) -> list[str]:
        """What one said until its end."""
        self._ask.write(order + "\n")
        self._ask.flush()
        pid = int(self._said.readline().removeprefix("pid "))
        lines = [self._said.readline() for _ in range(self._rng.randrange(6))]
        time.sleep(self._rng.random() * 0.003)  # a moment within a page
        os.kill(pid, signal.SIGKILL)
        lines += iter(self._said.readline, "gone\n")
        return [line.strip() for line in lines]


@pytest.fixture
def victims() -> Iterator[Victims]:
    program = [sys.executable, "-m", "tests.kvcache.disk_child"]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        yield Victims(zygote)
        zygote.communicate(timeout=LONGEST)


def test_what_was_counted_survives_kills_while_storing(victims: Victims, tmp_path: Path) -> None:
    told: list[int] = []
    torn = 0
    for kill in range(KILLS):
        first = kill * 1000
        news = [int(line.removeprefix("stored ")) for line in victims.killed(f"store {tmp_path} {first}")]
        torn += len(list(tmp_path.glob("*.part")))
        tier = DiskTier.open(tmp_path, BUDGET, NBYTES)
        assert not list(tmp_path.glob("*.part"))
        for number in range(first, first + len(news) + 8):  # and some that were stored and not told, or not stored
            content = fetched(tier, numbered(number))
            assert content == numbered(number).content or (content is None and number not in news)
        assert tier.state().refused == 0, "half a page was taken for a page"
        tier.close()
        told += news
    assert torn > 0, "no kill came while a page was written"
    tier = DiskTier.open(tmp_path, BUDGET, NBYTES)
    assert all(fetched(tier, numbered(number)) == numbered(number).content for number in told)
    tier.close()


def test_kills_while_loading_harm_nothing(victims: Victims, tmp_path: Path) -> None:
    pages = [numbered(number) for number in range(10)]
    tier = DiskTier.open(tmp_path, BUDGET, NBYTES)
    assert all(tier.store(page.key, page.parent, page.tokens, page.content) for page in pages)
    tier.close()
    for _ in range(KILLS):
        assert set(victims.killed(f"load {tmp_path} 10")) <= {"right"}
    tier = DiskTier.open(tmp_path, BUDGET, NBYTES)
    assert all(fetched(tier, page) == page.content for page in pages)
    tier.close()
