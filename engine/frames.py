"""Frames on the socket between server and engine child: a 4-byte little-endian length, and msgpack."""

import socket
from typing import Generic, TypeVar

import msgspec

from engine.messages import EngineSpec, FromEngine, ToEngine

HEAD = 4

T = TypeVar("T")


class Reading(Generic[T]):
    """Frames of one kind of message, off a blocking socket."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder

    def read(self, link: socket.socket) -> T:
        """The next message; EOFError once the other end is gone."""
        return self._decoder.decode(_exactly(link, int.from_bytes(_exactly(link, HEAD), "little")))

    def decode(self, body: bytes) -> T:
        return self._decoder.decode(body)


TO_ENGINE: Reading[ToEngine] = Reading(msgspec.msgpack.Decoder(ToEngine))
FROM_ENGINE: Reading[FromEngine] = Reading(msgspec.msgpack.Decoder(FromEngine))
SPEC: Reading[EngineSpec] = Reading(msgspec.msgpack.Decoder(EngineSpec))


def frame(message: ToEngine | FromEngine | EngineSpec) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEAD, "little") + body


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    got = 0
    while got < count:
        now = link.recv_into(memoryview(data)[got:])
        if now == 0:
            raise EOFError("the other end hung up")
        got += now
    return bytes(data)
