"""`puna serve`: the application on a socket, and an end that cuts nobody off in mid-sentence."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from engine.collector import spare_what_is_here
from server.app import Surroundings, make_app
from server.drain import Door
from server.served import Store
from server.signals import Signals, watched_signals
from server.web_server import WebServer, bind

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    host: str
    port: int
    queue: int = 256
    grace: float = 30.0
    surroundings: Surroundings = field(default_factory=Surroundings)


async def serve(listening: Listening, opening: Callable[[], Coroutine[Any, Any, Store]]) -> None:
    """Returns when the server was told to leave, and has left."""
    with watched_signals() as signals, bind(listening.host, listening.port) as bound:
        loading = asyncio.create_task(opening())
        stopping = asyncio.create_task(signals.first.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.wait((loading,))
            return
        store = loading.result()
        spare_what_is_here()
        try:
            await _answer(store, listening, bound, signals)
        finally:
            await store.close()


async def _answer(store: Store, listening: Listening, bound: socket, signals: Signals) -> None:
    door = Door(listening.queue)
    host, port = bound.getsockname()[:2]
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    app = make_app(store, door, listening.surroundings)
    server = WebServer(app, lambda: _log.info("%s at %s", ", ".join(store.models), url))
    leaving = asyncio.create_task(_leave(door, server, signals, listening.grace))
    try:
        await server.serve([bound])
    finally:
        leaving.cancel()


async def _leave(door: Door, server: WebServer, signals: Signals, grace: float) -> None:
    """New requests are refused from the first signal on; running ones have until the grace is over or the second."""
    await signals.first.wait()
    door.close()
    _log.info("leaving; %d requests have %.0f s to finish", door.inside, grace)
    empty = asyncio.create_task(door.empty(grace))
    hurry = asyncio.create_task(signals.second.wait())
    await asyncio.wait((empty, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    empty.cancel()
    door.expire()
    server.should_exit = True
