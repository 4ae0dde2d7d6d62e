"""Server-sent events: a stream of JSON objects that ends with [DONE], whatever happens on the way."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from time import monotonic

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quant.errors import PunaError
from server.disconnect import gone
from server.errors import ServerFault, as_request_error

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = 10.0  # seconds; clients' own watchdogs are reset by events, and not by comments
SLOWEST_READER = 60.0  # seconds that one event may wait to be taken

_HEADERS = {"cache-control": "no-store", "connection": "keep-alive", "x-accel-buffering": "no"}
_ENCODER = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


def event(data: object) -> bytes:
    return b"data: " + _ENCODER.encode(data) + b"\n\n"


async def events(chunks: AsyncIterator[object]) -> AsyncIterator[bytes]:
    """The chunks; if they break off, an error event; then [DONE]."""
    try:
        async for chunk in chunks:
            yield event(chunk)
    except PunaError as error:
        _log.warning("a stream ended early: %s", error)
        yield event(as_request_error(error).body)
    except Exception:
        _log.exception("a stream ended early")
        yield event(ServerFault("internal error").body)
    yield DONE


class Stream(Response):
    """A response of events. However it ends, by its end, by the client's or by ours, `close` is called.

    Whoever waits gets an event that says nothing every so often; whoever takes nothing is dropped.
    """

    def __init__(self, chunks: AsyncIterator[object], keep_alive: object, close: Callable[[], None]) -> None:
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self.init_headers(_HEADERS)
        self._chunks = chunks
        self._keep_alive = keep_alive
        self._close = close
        self._sending = asyncio.Lock()  # two senders: the chunks, and what keeps the stream alive between them
        self._moved = monotonic()  # when an event was last begun to be sent, or taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streaming = asyncio.create_task(self._stream(send))
        others = [asyncio.create_task(self._mind(send)), asyncio.create_task(gone(receive))]
        try:
            await asyncio.wait((streaming, *others), return_when=asyncio.FIRST_COMPLETED)
            if streaming.done():
                streaming.result()
        finally:
            self._close()
            for task in (streaming, *others):
                task.cancel()
            await asyncio.gather(streaming, *others, return_exceptions=True)

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in events(self._chunks):
            await self._send(send, data)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _mind(self, send: Send) -> None:
        """Returns when the reader has become too slow."""
        while True:
            most = SLOWEST_READER if self._sending.locked() else KEEP_ALIVE
            left = self._moved + most - monotonic()
            if left > 0:
                await asyncio.sleep(min(left, KEEP_ALIVE))
            elif self._sending.locked():
                _log.warning("a client read nothing for %g s; its stream was dropped", SLOWEST_READER)
                return
            else:
                await self._send(send, event(self._keep_alive))

    async def _send(self, send: Send, data: bytes) -> None:
        async with self._sending:
            self._moved = monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._moved = monotonic()
