"""Server-sent events: a stream of JSON objects that ends with [DONE], whatever happens on the way."""

import logging
from collections.abc import AsyncIterator, Callable

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from quant.errors import PunaError
from server.errors import ServerFault, as_request_error

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = 10.0  # seconds; clients' own watchdogs are reset by events, and not by comments
SLOWEST_READER = 60.0  # seconds that one event may wait to be taken

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


class Stream(EventSourceResponse):
    """A response of events. However it ends, by its end, by the client's or by ours, `close` is called."""

    def __init__(self, chunks: AsyncIterator[object], keep_alive: object, close: Callable[[], None]) -> None:
        super().__init__(
            events(chunks),
            ping=KEEP_ALIVE,
            ping_message_factory=lambda: ServerSentEvent(msgspec.json.encode(keep_alive).decode(), sep="\n"),
            send_timeout=SLOWEST_READER,
            # The server drains by itself (server/drain.py) and tells streams when to end; left alone, the library
            # would cut them when it sees uvicorn's signal handler.
            shutdown_grace_period=float("inf"),
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.warning("a client read nothing for %g s; its stream was dropped", SLOWEST_READER)
        finally:
            self._close()
