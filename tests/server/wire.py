"""A client that costs next to nothing: HTTP/1.1 over one connection, a reply taken as bytes until it is whole."""

import asyncio
from typing import Any

import msgspec

_DECODER = msgspec.json.Decoder()


class Cut(Exception):
    """The other end closed the connection before the reply was whole."""


class Wire(asyncio.Protocol):
    """One connection, for one request at a time. `events` is how many events of a stream have come."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._wanted = 0  # events after which the waiting is over, though the reply is not
        self._whole: asyncio.Future[None] | None = None
        self.lost = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, port: int) -> "Wire":
        _, wire = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(Cut(bytes(self._came)))

    def data_received(self, data: bytes) -> None:
        self._came += data
        if self._whole is None or self._whole.done():
            return
        if is_whole(self._came) or (self._wanted and self._came.count(b"data: ") >= self._wanted):
            self._whole.set_result(None)

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._came.clear()
        self._transport.write(data)

    async def reply(self, events: int = 0) -> bytes:
        """The whole reply, or what has come when a stream has had so many events."""
        self._wanted = events
        self._whole = asyncio.get_running_loop().create_future()
        self.data_received(b"")
        if self.lost.done() and not self._whole.done():
            raise Cut(bytes(self._came))
        await self._whole
        return bytes(self._came)

    async def close(self, *, rude: bool = False) -> None:
        """A rude one sends a reset and not an end."""
        assert self._transport is not None
        if rude:
            self._transport.abort()
        else:
            self._transport.close()
        await self.lost


def post(path: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def is_whole(reply: bytes | bytearray) -> bool:
    end = reply.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = reply.find(b"content-length: ", 0, end)
    if length < 0:
        return reply.endswith(b"\r\n0\r\n\r\n")
    return len(reply) - end - 4 == int(reply[length + 16 : reply.index(b"\r\n", length)])


def status_of(reply: bytes) -> int:
    return int(reply[9:12])


def events_of(reply: bytes) -> list[Any]:
    """The objects of a stream that ends as streams do."""
    body = _unchunked(reply)
    *events, last, end = body.split(b"\n\n")
    assert (last, end) == (b"data: [DONE]", b"")
    return [_DECODER.decode(event.removeprefix(b"data: ")) for event in events]


def json_of(reply: bytes) -> Any:
    return _DECODER.decode(reply[reply.index(b"\r\n\r\n") + 4 :])


def _unchunked(reply: bytes) -> bytes:
    at, parts = reply.index(b"\r\n\r\n") + 4, []
    while (size := int(reply[at : (end := reply.index(b"\r\n", at))], 16)) > 0:
        parts.append(reply[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)
