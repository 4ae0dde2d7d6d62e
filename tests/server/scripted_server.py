"""A program: `puna serve` with an engine that reads from a script, for tests that need a process to signal."""

import asyncio
import sys

from server.logs import log_to
from server.serve import Listening, serve
from server.served import Store
from tests.server.fakes import FakeEngine, says, served


class SlowEngine(FakeEngine):
    """Says a token every hundredth of a second."""

    async def step(self, index: int) -> None:
        await asyncio.sleep(0.01)


async def opening() -> Store:
    return Store([served(SlowEngine(says("word " * 20)))])


if __name__ == "__main__":
    log_to(None)
    asyncio.run(serve(Listening("127.0.0.1", 0, grace=float(sys.argv[1])), opening))
