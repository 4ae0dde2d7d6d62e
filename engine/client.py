"""The server's end of an engine: submit, stream, cancel, ask; if the child dies it is replaced, and all are told."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from engine.breaker import Breaker
from engine.messages import (
    Ask,
    Asker,
    Cancel,
    Delta,
    EngineSpec,
    FromEngine,
    Ready,
    Report,
    Sampling,
    Step,
    Submit,
    ToEngine,
)
from engine.process import EngineProcess
from quant.errors import EngineError, PunaError

PROGRAM = "from engine.child import main; from engine.load import load; main(load)"

NOBODY = Asker()

_log = logging.getLogger(__name__)


class Answer(Protocol):
    """News of one submitted sequence, in order: `async for delta in answer`.

    It ends after the delta that has a finish. It raises EngineError, once, when the engine died or cannot go on with
    this sequence. Whoever stops listening earlier calls `cancel`; it may be called at any time, any number of times.

    `listen` is for those who have many of them: from then on news are told as they come, those that wait first, and
    the iteration has none. A fault is then told as it is, a delta.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...
    async def __anext__(self) -> Delta: ...
    def listen(self, tell: Callable[[Delta], None]) -> None: ...
    def cancel(self) -> None: ...


class Runner(Protocol):
    """What the server asks of an engine; EngineClient is one, and tests have their own."""

    @property
    def ready(self) -> Ready:
        """Limits of the engine; they do not change while the client lives."""
        ...

    @property
    def alive(self) -> bool:
        """A child is there and has loaded the model."""
        ...

    @property
    def open(self) -> int:
        """Sequences submitted and not over: waiting or running."""
        ...

    def submit(self, prompt: Sequence[int], sampling: Sampling, asker: Asker = NOBODY) -> Answer:
        """Raises EngineError when the engine is down for longer than a reload takes."""
        ...

    async def report(self) -> Report:
        """How the engine stands after its step. Raises EngineError when there is none, or it dies meanwhile."""
        ...

    async def close(self) -> None: ...


class Request:
    """One sequence that was submitted; see Answer."""

    def __init__(self, client: "EngineClient", submit: Submit) -> None:
        self.submit = submit
        self.came = time.monotonic()
        self._client = client
        self._news: asyncio.Queue[Delta] = asyncio.Queue()
        self._over = False
        self.tell: Callable[[Delta], None] = self._news.put_nowait

    @property
    def submit_now(self) -> Submit:
        """With the patience that is left."""
        asker = self.submit.asker
        if asker.patience is None:
            return self.submit
        left = max(0.0, self.came + asker.patience - time.monotonic())
        return msgspec.structs.replace(self.submit, asker=msgspec.structs.replace(asker, patience=left))

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        news = await self._news.get()
        self._over = news.finish is not None or news.fault is not None
        if news.fault is not None:
            raise EngineError(news.fault)
        return news

    def cancel(self) -> None:
        self._client.cancel(self)

    def listen(self, tell: Callable[[Delta], None]) -> None:
        self.tell = tell
        while not self._news.empty():
            tell(self._news.get_nowait())


class EngineClient:
    """The one owner of a child and of the requests that are open with it; all on one event loop."""

    def __init__(self, spec: EngineSpec, program: str, breaker: Breaker) -> None:
        self._spec = spec
        self._program = program
        self._breaker = breaker
        self._child: EngineProcess | None = None  # until it is reaped
        self._alive = False
        self._supervisor: asyncio.Task[None] | None = None
        self._open: dict[int, Request] = {}
        self._asked: deque[asyncio.Future[Report]] = deque()  # reports come in the order in which they were asked for
        self._submitted = 0
        self._down: str | None = None  # why nothing is taken, for longer than a reload
        self._ready: Ready | None = None

    @classmethod
    async def start(cls, spec: EngineSpec, program: str = PROGRAM, breaker: Breaker | None = None) -> "EngineClient":
        """A client whose child has loaded the model. Raises what the child could not do."""
        client = cls(spec, program, breaker or Breaker())
        await client._load()
        client._supervisor = asyncio.create_task(client._supervise())
        return client

    @property
    def ready(self) -> Ready:
        assert self._ready is not None, "a client is started before it is used"
        return self._ready

    @property
    def alive(self) -> bool:
        return self._alive

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def pid(self) -> int | None:
        """The child's, for whoever watches the machine."""
        return self._child.pid if self._child else None

    def submit(self, prompt: Sequence[int], sampling: Sampling, asker: Asker = NOBODY) -> Request:
        """What is submitted during a reload waits for it."""
        if self._down is not None:
            raise EngineError(self._down)
        self._submitted += 1
        request = Request(self, Submit(self._submitted, list(prompt), sampling, asker))
        self._open[self._submitted] = request
        self._send(request.submit)
        if not self._alive and asker.patience is not None:
            asyncio.get_running_loop().call_later(asker.patience, self._expire, request)
        return request

    async def report(self) -> Report:
        if not self._alive:
            raise EngineError(self._down or "the engine is being loaded")
        asked: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._send(Ask())
        return await asked

    def cancel(self, request: Request) -> None:
        """The request is over here at once, and in the engine before its next step."""
        name = request.submit.id
        if self._open.pop(name, None) is None:
            return
        request.tell(Delta(name, (), "cancelled"))
        self._send(Cancel(name))

    def _expire(self, request: Request) -> None:
        """Its patience is over; if there still is no engine that would notice, it ends here."""
        if not self._alive and self._open.pop(request.submit.id, None) is not None:
            request.tell(Delta(request.submit.id, (), "expired"))

    async def close(self) -> None:
        """No child is left, and open requests are told."""
        self._down = "the engine was closed"
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,))  # whatever it died of, the child is buried
        self._alive = False
        await self._bury()
        self._fail(self._down)

    async def _supervise(self) -> None:
        while True:
            death = await self._listen()
            self._alive = False
            _log.error("%s; %d open requests are lost", death, len(self._open))
            self._fail(str(death))
            await self._bury()
            while not self._alive:
                await self._recover()

    async def _listen(self) -> PunaError:
        """Hands out news until the child dies; what it died of."""
        assert self._child is not None, "there is someone to listen to"
        while True:
            try:
                message = await self._child.receive()
            except PunaError as death:
                return death
            self._hear(message)

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Step(deltas):
                for delta in deltas:
                    self._deliver(delta)
            case Report():
                asked = self._asked.popleft()
                if not asked.done():  # whoever asked may have left
                    asked.set_result(message)
            case _:
                raise AssertionError("a child is ready once")

    def _deliver(self, delta: Delta) -> None:
        request = self._open.get(delta.id)
        if request is None:
            return  # cancelled, and the engine had not heard of it yet
        if delta.fault is not None or delta.finish is not None:
            del self._open[delta.id]
        request.tell(delta)

    async def _recover(self) -> None:
        """One try to have a child again, after as long a wait as the breaker wants."""
        wait = self._breaker.died(time.monotonic())
        if wait > 0:
            self._down = f"the engine died again and again; it is tried once more in {wait:.0f} s"
            _log.error("%s", self._down)
            self._fail(self._down)
            await asyncio.sleep(wait)
            self._down = None
        try:
            await self._load()
        except PunaError as error:
            _log.error("%s", error)
            self._fail(str(error))

    async def _load(self) -> None:
        """A child is there, loaded, and has been sent whatever was submitted meanwhile."""
        child = self._child = await EngineProcess.spawn(self._spec, self._program)
        try:
            ready = await child.ready()
        except BaseException:
            await self._bury()
            raise
        if self._ready is None:  # a later child keeps to the limits that the server has told its clients
            self._ready = ready
            self._spec = msgspec.structs.replace(self._spec, context=ready.context)
        self._alive = True
        for request in self._open.values():
            self._send(request.submit_now)

    def _send(self, message: ToEngine) -> None:
        """What is meant for a child that is not there yet follows when it is; what was meant for a dead one is void."""
        if self._alive and self._child is not None:
            self._child.send(message)

    async def _bury(self) -> None:
        if self._child is not None:
            await self._child.end()
            self._child = None

    def _fail(self, fault: str) -> None:
        lost, self._open = self._open, {}
        for name, request in lost.items():
            request.tell(Delta(name, (), fault=fault))
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(EngineError(fault))
