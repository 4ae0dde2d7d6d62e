"""Streamed completions as a client sees them: when each piece came, and what the server says it cost.

One thread reads all streams, so that the measuring takes little from the servers' two cores.
"""

import json
import selectors
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, Self

from tests.peers.servers import Server

COMPLETIONS = "/v1/completions"
SLOWEST = 900  # seconds without any news


class Stream:
    """One completion under way. `arrivals` are the times of pieces that have text, and `lengths` their characters.

    A piece is a token's text, or that of several which came together. `usage` comes with the last.
    """

    def __init__(self, server: Server, body: Mapping[str, Any]) -> None:
        self.arrivals: list[float] = []
        self.lengths: list[int] = []
        self.text = ""
        self.usage: dict[str, Any] = {}
        self.over = False
        self._rest = b""
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self.asked = perf_counter()
        self._socket.sendall(_request(body))

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> None:
        """Takes what is there; waits for it if nothing is."""
        got = self._socket.recv(1 << 16)
        now = perf_counter()
        *lines, self._rest = (self._rest + got).split(b"\n")
        before = len(self.text)
        for line in lines:
            self._take(line.strip())
        if len(self.text) > before:
            self.arrivals.append(now)
            self.lengths.append(len(self.text) - before)
        if not got and not self.over:
            raise SystemExit(f"a stream broke off after {self.text[-200:]!r}")

    def close(self) -> None:
        self._socket.close()

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.asked

    @property
    def cached(self) -> int:
        """Prompt tokens that the server did not compute; a server that does not say computed all."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def _take(self, line: bytes) -> None:
        """Of HTTP's own lines, heads and lengths of chunks, only a status that is none of success matters."""
        if line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
            self._socket.settimeout(1)
            raise SystemExit(f"{line.decode()}\n{self._socket.recv(1 << 16).decode(errors='replace')}")
        if not line.startswith(b"data: "):
            return
        if line == b"data: [DONE]":
            self.over = True
            return
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise SystemExit(f"a stream ended with {event['error']}")
        self.usage = event.get("usage") or self.usage
        self.text += "".join(choice["text"] for choice in event["choices"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()


def follow(streams: Collection[Stream], enough: Callable[[], bool] = lambda: False) -> None:
    """Reads until there is enough, or every stream is over."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            if not stream.over:
                selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map() and not enough():
            news = selector.select(SLOWEST)
            if not news:
                raise SystemExit(f"nothing came for {SLOWEST} s")
            for key, _ in news:
                key.data.read()
                if key.data.over:
                    selector.unregister(key.fileobj)


def ended(streams: Collection[Stream]) -> list[Stream]:
    """Those that are over, as soon as one is."""
    follow(streams, lambda: any(stream.over for stream in streams))
    return [stream for stream in streams if stream.over]


def complete(server: Server, body: Mapping[str, Any]) -> Stream:
    """One that is over."""
    with Stream(server, body) as stream:
        follow([stream])
    return stream


def rate(arrivals: Iterable[Sequence[float]]) -> float:
    """Pieces a second, of all together, while all of them ran."""
    every = list(arrivals)
    begin, end = max(times[0] for times in every), min(times[-1] for times in every)
    return sum(begin < time <= end for times in every for time in times) / (end - begin)


def _request(body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
