"""Laws of a stream of events: whatever ends it, what feeds it is closed; readers that wait or sleep are dealt with."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from quant.errors import EngineError
from server.sse import Stream

pytestmark = pytest.mark.anyio


SCOPE = {"type": "http", "method": "POST"}


class Client:
    """The other end: takes events until it holds, and leaves when it is told to."""

    def __init__(self, takes: int = 10**9) -> None:
        self.events: list[str] = []
        self.done = False
        self.leaves = asyncio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
            return
        if len(self.events) == self._takes:
            await asyncio.Event().wait()
        self.events += filter(None, message["body"].decode().split("\n\n"))
        self.done = not message["more_body"]

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def has(self, events: int) -> None:
        """Waits until so many have come."""
        async with asyncio.timeout(10):
            while len(self.events) < events:
                await asyncio.sleep(0)

    async def reads(self, chunks: AsyncIterator[object]) -> int:
        """How often the stream was closed when it is over."""
        closed = []
        stream = Stream(chunks, {"nothing": True}, lambda: closed.append(1))
        await asyncio.wait_for(stream(SCOPE, self.receive, self.send), 10)
        return len(closed)


async def numbers(count: int, fault: Exception | None = None) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        await asyncio.sleep(0)
    if fault is not None:
        raise fault


async def silence() -> AsyncIterator[int]:
    yield 0
    await asyncio.Event().wait()


async def test_all_chunks_come_in_order_and_then_the_end() -> None:
    client = Client()
    assert await client.reads(numbers(3)) == 1
    assert client.events == ["data: 0", "data: 1", "data: 2", "data: [DONE]"]
    assert client.done
    assert client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in client.headers


@pytest.mark.parametrize(
    ("fault", "code"), [(EngineError("the engine died"), "engine_error"), (ZeroDivisionError(), "server_error")]
)
async def test_a_stream_that_breaks_off_says_so_and_ends(fault: Exception, code: str) -> None:
    client = Client()
    assert await client.reads(numbers(2, fault)) == 1
    *_, error, done = client.events
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == code
    assert (done, client.done) == ("data: [DONE]", True)


async def test_a_client_that_leaves_ends_the_stream() -> None:
    client = Client()
    reading = asyncio.create_task(client.reads(silence()))
    await client.has(1)
    client.leaves.set()
    assert await reading == 1
    assert not client.done


async def test_a_reader_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.sse.SLOWEST_READER", 0.01)
    monkeypatch.setattr("server.sse.KEEP_ALIVE", 0.01)  # so often it is looked at
    client = Client(takes=1)
    assert await client.reads(numbers(3)) == 1
    assert (client.events, client.done) == (["data: 0"], False)


async def test_a_reader_that_waits_gets_events_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.sse.KEEP_ALIVE", 0.01)
    client = Client()
    reading = asyncio.create_task(client.reads(silence()))
    await client.has(4)
    client.leaves.set()
    await reading
    assert client.events == ["data: 0"] + ['data: {"nothing":true}'] * 3
    monkeypatch.setattr("server.sse.KEEP_ALIVE", 1000)
    client = Client()
    await client.reads(numbers(1000))
    assert 'data: {"nothing":true}' not in client.events


async def test_a_response_that_is_cancelled_closes_what_feeds_it() -> None:
    closed = asyncio.Event()
    client = Client()
    running = asyncio.create_task(Stream(silence(), {}, closed.set)(SCOPE, client.receive, client.send))
    await client.has(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert closed.is_set()
