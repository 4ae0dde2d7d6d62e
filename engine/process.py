"""One engine child, as the server sees it: a process, and the socket to it."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable

from engine.command_buffers import environment
from engine.frames import FROM_ENGINE, HEAD, frame
from engine.messages import EngineSpec, Fault, FromEngine, Ready, Stop, ToEngine
from kvcache.cache import LEAVING
from quant.errors import EngineError, ModelFileError, ModelFormatError, NotEnoughMemory, PunaError, UnsupportedModel

PATIENCE = 2.0  # seconds that a child has to leave, each time it is pushed harder

_FILE_ERRORS = {kind.__name__: kind for kind in (ModelFileError, ModelFormatError, UnsupportedModel)}
_ERRORS = {kind.__name__: kind for kind in (EngineError, NotEnoughMemory)}


class EngineProcess:
    """A running child. Whoever spawned it calls `end`, which reaps it, dead or alive."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._time_to_store = 0.0  # seconds that it may want beside, to leave

    @classmethod
    async def spawn(cls, spec: EngineSpec, program: str) -> "EngineProcess":
        """A child that has been told what to load. One that is cancelled here leaves nothing behind."""
        try:
            child = cls(*await _linked(program))
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread is left to wait for it
            raise EngineError(f"the engine could not be started: {error}") from error
        child._time_to_store = LEAVING if spec.kv_disk is not None else 0.0
        child.send(spec)
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine | EngineSpec) -> None:
        """On its way; to a child that died in between, it is lost, and `receive` tells of the death."""
        self._writer.write(frame(message))

    async def ready(self) -> Ready:
        """What the child says when it has loaded the model; raises what it says when it could not."""
        message = await self.receive()
        assert isinstance(message, Ready), "a child speaks of steps before it is ready"
        return message

    async def receive(self) -> FromEngine:
        """The next message; raises what the child died of."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEAD), "little")
            message = FROM_ENGINE.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EngineError(f"the engine died ({await self._epitaph()})") from None
        if isinstance(message, Fault):
            raise error_of(message)
        return message

    async def end(self) -> None:
        """The child is gone and reaped: it was asked, then hung up on, then killed."""
        pushes: tuple[tuple[Callable[[], None], float], ...] = (
            (lambda: self.send(Stop()), PATIENCE + self._time_to_store),
            (self._writer.close, PATIENCE),
            (self._kill, PATIENCE),
        )
        for push, patience in pushes:
            if self._process.returncode is None:
                push()
                await self._gone(patience)
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _epitaph(self) -> str:
        """How it left. A child without its socket is of no use, so one that lingers is killed."""
        await self._gone()
        self._kill()
        code = await self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    async def _gone(self, within: float = PATIENCE) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), within)

    def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


async def _linked(program: str) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """A child, and our end of the link to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            return await _spawn(program, theirs.fileno()), reader, writer
        except BaseException:
            writer.close()
            raise


async def _spawn(program: str, link: int) -> asyncio.subprocess.Process:
    """It holds the other end of the link, and imports from where we do."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", program, str(link)),
        pass_fds=(link,),
        stdin=asyncio.subprocess.DEVNULL,
        process_group=0,  # a Ctrl-C is the server's to hear, even before the child can ignore it
        env=os.environ | environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def error_of(fault: Fault) -> PunaError:
    if fault.path is not None:
        return _FILE_ERRORS[fault.kind](fault.path, fault.text)
    return _ERRORS[fault.kind](fault.text)
