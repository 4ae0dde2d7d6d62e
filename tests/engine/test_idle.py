"""Law of an idle engine: after an answer every thread of its process sleeps, and nothing wakes one."""

import asyncio
import sys
import time
from pathlib import Path

import pytest

from engine.client import EngineClient
from engine.messages import EngineSpec, Sampling
from tests.tiny_models import write_gguf

LOOKS = 300  # a tenth of a second and more


def threads(pid: int) -> dict[str, tuple[str, ...]]:
    """Of each, by its id: the state, and how often it was taken off a core."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        found[task.name] = tuple(lines[name] for name in ("State", "voluntary_ctxt_switches"))
    return found


def rests(pid: int) -> bool:
    """All sleep, and none had a core between the first look and the last."""
    first = threads(pid)
    assert len(first) >= 4  # two workers of the pool beside its caller, and who reads the socket
    asleep = all(state.startswith("S") for state, *_ in first.values())
    return asleep and all(threads(pid) == first for _ in range(LOOKS))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_no_thread_of_an_idle_engine_runs(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", context=256)

    async def work() -> None:
        client = await EngineClient.start(EngineSpec(path=str(path), device="cpu", threads=3))
        try:
            async for _ in client.submit(list(range(5, 45)), Sampling(max_tokens=4, temperature=0)):
                pass
            assert client.pid is not None
            deadline = time.monotonic() + 30  # of a test that fails
            while not rests(client.pid):
                assert time.monotonic() < deadline
        finally:
            await client.close()

    asyncio.run(work())
