"""A server as `puna serve` runs it, whose processes say how much memory they have in use.

Usage: python -m tests.server.soak_server MODEL FOLDER, the folder being the disk tier's. On SIGUSR1 the server and its
engine each write `PID BLOCKS BYTES` on standard output, after a full collection: how many small objects Python has, and
what the C library has given out and not been given back, which is for all the rest.
"""

import asyncio
import ctypes
import gc
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import child
from engine.client import EngineClient
from engine.load import load
from engine.messages import EngineSpec
from models.card import open_card
from server.logs import log_to
from server.serve import Listening, serve
from server.served import Served, Store

ENGINE = "from tests.server.soak_server import engine; engine()"
QUEUE = 64

CONTEXT = 512
POOL = 20  # pages; one context takes 16
PAGE_BYTES = 8192  # of the tiny model
DISK = 96 * 9000  # bytes: about so many pages


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write, so that lines of two processes do not mix


class Given(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("a", "b", "c", "d", "mapped", "e", "f", "used", "g", "h")]


def tell(number: int, frame: object) -> None:
    gc.collect()
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Given
    given = ask()
    say(f"{os.getpid()} {sys.getallocatedblocks()} {given.used + given.mapped}")


def engine() -> None:
    signal.signal(signal.SIGUSR1, tell)
    child.main(load)


async def opened(model: Path, folder: Path) -> Store:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))  # soon all there, on large machines too
    spec = EngineSpec(
        path=str(model),
        device="cpu",
        threads=1,
        context=CONTEXT,
        kv_memory=POOL * PAGE_BYTES,
        kv_disk=str(folder),
        kv_disk_budget=DISK,
        max_batch=16,
    )
    client = await EngineClient.start(spec, ENGINE)
    say(f"engine {client.pid}")
    return Store([Served("tiny", open_card(model), client)])


def main(model: str, folder: str, port: str) -> None:
    signal.signal(signal.SIGUSR1, tell)
    log_to(None)
    asyncio.run(serve(Listening("127.0.0.1", int(port), QUEUE), lambda: opened(Path(model), Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
