"""uvicorn as we run it: signals are not its business, and a head that does not come is given up."""

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import Callable, Generator

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from quant.errors import PunaError
from server.errors import RequestError

SLOWEST_HEAD = 10.0  # seconds from a connection, or from the first byte of a further request, to the end of the head
LAST_WORDS = 5  # seconds that connections have to take what is still to be sent, once the server stops


class Connection(H11Protocol):
    """A connection that waits for a request's head for so long, and no longer."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """For bytes that are no request, in the API's shape like every other error."""
        body = json.dumps(RequestError(msg).body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        events = (h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")]), h11.Data(data=body))
        for event in (*events, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """The deadline runs while a head is under way; between requests uvicorn has a shorter one of its own."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(SLOWEST_HEAD, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class WebServer(uvicorn.Server):
    """Serves until `should_exit`. Signals are handled by whoever runs it: uvicorn would raise them again at its end."""

    def __init__(self, app: FastAPI, listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )
        self._listening = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: until then clients are refused, and do not hang."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PunaError(f"{host}:{port}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        advice = "; is another server there? See --port" if error.errno == errno.EADDRINUSE else ""
        raise PunaError(f"{host}:{port}: {error.strerror}{advice}") from error
    return bound
