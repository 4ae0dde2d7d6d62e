"""The engine child: reads what to load, loads it, then turns messages into steps until it is told or left to go."""

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from engine.collector import spare_what_is_here
from engine.engine import Engine
from engine.frames import SPEC, TO_ENGINE, frame
from engine.messages import Ask, Cancel, Delta, EngineSpec, Fault, FromEngine, Ready, Step, Stop, Submit, ToEngine
from engine.placement import Placement
from kvcache.pages import PAGE
from quant.errors import EngineError, ModelFileError, NotEnoughMemory, PunaError

SETTLING = 0.005  # seconds between handfuls of pages that go to a further tier while nobody asks for anything


@dataclass(frozen=True)
class Loaded:
    """An engine, and the name of the device it computes on."""

    engine: Engine
    device: str
    placement: Placement


def main(load: Callable[[EngineSpec], Loaded]) -> None:
    """The program of the child; the number of its socket is its one argument.

    Only the server says when it leaves: a signal to the whole group must not cut the server's drain short.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as link:
        try:
            _serve(link, load)
        except (ConnectionError, EOFError):
            pass  # nobody is left to hear
        except Exception as error:
            if not isinstance(error, PunaError):
                traceback.print_exc()
            link.sendall(frame(fault_of(error)))


def _serve(link: socket.socket, load: Callable[[EngineSpec], Loaded]) -> None:
    spec = SPEC.read(link)
    inbox = Inbox(link)  # from here on, a server that is gone is noticed
    started = time.monotonic()
    loaded = load(spec)
    spare_what_is_here()
    link.sendall(frame(_ready(loaded, time.monotonic() - started)))
    run(loaded.engine, inbox, lambda message: link.sendall(frame(message)))
    loaded.engine.close()


class Inbox:
    """Messages in order of arrival. A thread of its own reads them, so that a cancel arrives during a step.

    When the server is gone the child is too, at once and wherever it is: it has no one to serve and nothing to save.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._arrived: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="inbox").start()

    def wait(self) -> ToEngine:
        """The next message; sleeps until there is one."""
        return self._arrived.get()

    def wait_for(self, seconds: float) -> ToEngine | None:
        """The next message, if it comes so soon."""
        try:
            return self._arrived.get(timeout=seconds)
        except queue.Empty:
            return None

    def rest(self) -> list[ToEngine]:
        """What has arrived by now."""
        return [self._arrived.get() for _ in range(self._arrived.qsize())]

    def _read(self) -> None:
        while True:
            try:
                self._arrived.put(TO_ENGINE.read(self._link))
            except (EOFError, OSError):
                os._exit(0)


def run(engine: Engine, inbox: Inbox, send: Callable[[FromEngine], None]) -> None:
    """Steps while there is work, sleep while there is none, until Stop. News go out while the next step computes."""
    news: tuple[Delta, ...] = ()
    while True:
        for message in inbox.rest() if engine.busy or news else _awaited(engine, inbox):
            if isinstance(message, Stop):
                return
            _obey(engine, message, send)
        news += engine.expire()
        running = engine.start()
        if news:
            send(Step(news))
        news = ()
        if running:
            engine.prepare(running)
            news = engine.finish(running)
        else:
            engine.linger()


def _awaited(engine: Engine, inbox: Inbox) -> list[ToEngine]:
    """The next messages. Until they come, cold pages go to a further tier."""
    engine.check_now_and_then()
    while engine.cache.unsettled:
        engine.settle()
        if (first := inbox.wait_for(SETTLING)) is not None:
            return [first, *inbox.rest()]
    return [inbox.wait(), *inbox.rest()]


def _obey(engine: Engine, message: Submit | Cancel | Ask, send: Callable[[FromEngine], None]) -> None:
    if isinstance(message, Ask):
        send(engine.report())
        return
    if isinstance(message, Cancel):
        engine.cancel(message.id)
        return
    try:
        engine.submit(message)
    except EngineError as error:
        send(Step((Delta(message.id, (), fault=str(error)),)))


def _ready(loaded: Loaded, seconds: float) -> Ready:
    engine = loaded.engine
    limits, pages, place = engine.limits, engine.cache.pool.pages, loaded.placement
    serve = engine.answers_serve
    return Ready(limits.context, pages, PAGE, loaded.device, seconds, place.where, place.reason, serve)


def fault_of(error: Exception) -> Fault:
    if isinstance(error, ModelFileError):
        return Fault(type(error).__name__, error.fault, str(error.path))
    if isinstance(error, NotEnoughMemory):
        return Fault(NotEnoughMemory.__name__, str(error))
    text = str(error) if isinstance(error, PunaError) else f"{type(error).__name__}: {error}"
    return Fault(EngineError.__name__, text)
