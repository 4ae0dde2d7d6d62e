"""Thousands of requests of every kind against one server, many of them left alone: nothing of them stays behind.

PUNA_SOAK says how many; a few hundred where nobody does.
"""

import asyncio
import contextlib
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.server.soak_requests import Asked, Said, asked, heard
from tests.server.soak_server import CONTEXT, POOL
from tests.server.wire import Wire, get, json_of
from tests.tiny_models import write_gguf

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc says how much memory is given out"),
]

REQUESTS = int(os.environ.get("PUNA_SOAK", "600"))
FIRST = max(REQUESTS // 10, 300)  # until everything is there that is made once, and every cache is full
AT_ONCE = 24
# What may come to stay of a request on average: less than a list of one entry, or than a token's line in a table. And
# what differs at rest, whoever was last: how long the prompts are that conversations remember (36 of them with 4
# prompts of up to 512 tokens, 4 bytes each), what nodes are in the tree, what buffers Python and its libraries keep.
BLOCKS, SOME_BLOCKS = 0.1, 1500
BYTES, SOME_BYTES = 100, 2**20
AGAIN = 40
CHECKOUT = Path(__file__).parents[2]
LONGEST = 60.0  # seconds for what takes none


@dataclass(frozen=True)
class Held:
    """What a process has of the machine."""

    files: int
    threads: int
    blocks: int = field(compare=False)  # of Python's small objects
    bytes: int = field(compare=False)  # of everything else


@dataclass(frozen=True)
class Rest:
    """A server that has nothing to do."""

    requests: list[Any]
    cache: dict[str, Any]
    server: Held
    engine: Held


@dataclass
class Soaked:
    """A server under test, from outside."""

    process: "subprocess.Popen[bytes]"
    port: int
    engine: int

    async def told(self, path: str) -> Any:
        wire = await Wire.open(self.port)
        wire.send(get(path))
        answer = json_of(await wire.reply())["models"]["tiny"]
        await wire.close()
        return answer

    async def at_rest(self) -> "Rest":
        """How everything stands when no request is left and nothing changes any more."""
        end = time.monotonic() + LONGEST
        before, now = None, await self._rest()
        while before != now or now.cache["held"]:
            assert time.monotonic() < end, ("it never comes to rest", before, now)
            await asyncio.sleep(0.1)  # connections are closed, and cold pages written
            before, now = now, await self._rest()
        return now

    async def _rest(self) -> "Rest":
        requests = (await self.told("/v1/puna/requests"))["requests"]
        cache = await self.told("/v1/puna/cache")
        return Rest(requests, cache, await self._held(self.process.pid), await self._held(self.engine))

    async def _held(self, pid: int) -> Held:
        os.kill(pid, signal.SIGUSR1)
        said, blocks, given = map(int, (await self._line()).split())
        assert said == pid
        files, threads = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task"))
        return Held(files, threads, blocks, given)

    async def _line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), LONGEST)).decode()

    async def soak(self, numbers: Iterable[int]) -> dict[int, list[Said]]:
        """What those said that were answered; so many requests were under way at once."""
        said: dict[int, list[Said]] = {}
        left = iter(numbers)
        async with asyncio.TaskGroup() as clients:
            for _ in range(AT_ONCE):
                clients.create_task(self._client(left, said))
        return said

    async def _client(self, numbers: Iterable[int], said: dict[int, list[Said]]) -> None:
        wire = await Wire.open(self.port)
        for number in numbers:
            one = asked(number)
            if await meet(one, wire):
                said[number] = heard(one, await wire.reply())
            else:
                wire = await Wire.open(self.port)
        await wire.close()


async def meet(one: Asked, wire: Wire) -> bool:
    """The request is sent, and has its fate; whether it is to be answered."""
    data = one.bytes
    wire.send(data[: int(len(data) * one.moment * 20)] if one.fate == "half sent" else data)
    match one.fate:
        case "answered" | "refused":
            return True
        case "left soon":
            await asyncio.sleep(one.moment)
        case "left in mid-stream":
            await wire.reply(int(one.moment))
    await wire.close(rude=one.number % 3 == 0)
    return False


@contextlib.asynccontextmanager
async def soaked(folder: Path) -> AsyncIterator[Soaked]:
    model = write_gguf(folder, "llama", kind="q8_0", context=CONTEXT)
    command = [sys.executable, "-m", "tests.server.soak_server", str(model), str(folder / "pages"), "0"]
    log = folder / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            assert process.stdout is not None
            engine = int(process.stdout.readline().removeprefix(b"engine "))
            while (found := re.search(r"http://127.0.0.1:(\d+)/v1", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.01)
            yield Soaked(process, int(found[1]), engine)
            process.terminate()
            assert await asyncio.to_thread(process.wait, LONGEST) == 0, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text(), log.read_text()


async def test_nothing_stays_of_thousands_of_requests(tmp_path: Path) -> None:
    async with soaked(tmp_path) as server:
        said = await server.soak(range(FIRST))
        base = await server.at_rest()
        said |= await server.soak(range(FIRST, REQUESTS))
        rest = await server.at_rest()
        assert rest.requests == []
        assert (rest.cache["held"], rest.cache["free"] + rest.cache["cached"]) == (0, POOL)
        assert min(rest.cache[what] for what in ("evicted", "copied", "found", "preempted")) > 0
        assert min(rest.cache["disk"][what] for what in ("stored", "restored")) > 0
        assert rest.cache["disk"]["refused"] == 0
        assert (rest.server, rest.engine) == (base.server, base.engine), "files or threads"
        for before, after in ((base.server, rest.server), (base.engine, rest.engine)):
            print(f"{REQUESTS} requests: {before} {after}")
            assert after.blocks - before.blocks < SOME_BLOCKS + (REQUESTS - FIRST) * BLOCKS
            assert after.bytes - before.bytes < SOME_BYTES + (REQUESTS - FIRST) * BYTES
        await answers_are_the_same_alone(server, said)


async def answers_are_the_same_alone(server: Soaked, said: dict[int, list[Said]]) -> None:
    seeded = [number for number, choices in said.items() if choices and asked(number).repeatable]
    wire = await Wire.open(server.port)
    for number in random.Random(1).sample(seeded, AGAIN):
        one = asked(number)
        wire.send(one.bytes)
        assert heard(one, await wire.reply()) == said[number], one
    await wire.close()
