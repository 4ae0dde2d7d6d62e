"""Laws of leaving: clients that go take their sequences with them, a server that goes lets its clients finish."""

import asyncio
import json

import httpx
import pytest

from server.drain import Door
from tests.server.asking import CHAT, COMPLETE, HELLO, listening
from tests.server.fakes import FakeEngine, says

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("held", [0, 2], ids=["waiting", "decoding"])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_takes_its_sequences_with_it(streams: bool, held: int, n: int) -> None:
    engine = FakeEngine(says("abcdef"), holds_at=held)
    async with listening(engine) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": streams, "n": n}))
        await engine.becomes(n)
        asking.cancel()
        await engine.becomes(0)
    assert all(answer.cancelled for answer in engine.answers)


async def test_a_client_that_leaves_in_mid_stream_is_noticed() -> None:
    engine = FakeEngine(says("abcdef"), holds_at=3)
    async with listening(engine) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", COMPLETE, json={"prompt": "a", "stream": True}) as response:
            lines = response.aiter_lines()
            assert json.loads((await anext(lines)).removeprefix("data: "))["choices"][0]["text"][0] == "a"
        await engine.becomes(0)


async def test_a_server_that_leaves_lets_streams_finish_and_takes_no_more() -> None:
    engine, door = FakeEngine(says("abcdef"), holds_at=3), Door(capacity=8)
    async with listening(engine, door) as url, httpx.AsyncClient(base_url=url) as client:
        running = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": True}))
        await engine.becomes(1)
        door.close()
        refused = await client.post(CHAT, json={"messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) > 0
        assert (await client.get("/health")).json()["status"] == "draining"
        assert not await door.empty(within=0)
        engine.go.set()
        assert await door.empty(within=10)
        text = (await running).text
    assert '"finish_reason":"stop"' in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("streams", [False, True])
async def test_those_who_overstay_are_told(streams: bool) -> None:
    engine, door = FakeEngine(says("abcdef"), holds_at=3), Door(capacity=8)
    async with listening(engine, door) as url, httpx.AsyncClient(base_url=url) as client:
        running = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": streams}))
        await engine.becomes(1)
        door.close()
        door.expire()
        assert await door.empty(within=10)
        response = await running
    assert engine.open == 0
    assert "shutting_down" in response.text
    assert response.text.endswith("data: [DONE]\n\n") if streams else response.status_code == 503


async def test_a_full_house_says_when_to_come_back() -> None:
    engine = FakeEngine(says("abc"), holds_at=0)
    async with listening(engine, Door(capacity=2)) as url, httpx.AsyncClient(base_url=url) as client:
        inside = [asyncio.create_task(client.post(CHAT, json={"messages": HELLO})) for _ in range(2)]
        await engine.becomes(2)
        refused = await client.post(CHAT, json={"messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")
        assert refused.headers["retry-after-ms"] == "1000"
        assert (await client.get("/health")).json()["requests"] == 2
        engine.go.set()
        assert [response.status_code for response in await asyncio.gather(*inside)] == [200, 200]
        assert (await client.post(CHAT, json={"messages": HELLO})).status_code == 200


async def test_a_head_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.web_server.SLOWEST_HEAD", 0.01)
    async with listening(FakeEngine()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: ")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await writer.wait_closed()


async def test_a_stream_that_waits_sends_chunks_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.sse.KEEP_ALIVE", 0.01)
    engine, empty, last = FakeEngine(says("abc"), holds_at=0), 0, ""
    async with (
        listening(engine) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as response,
    ):
        async for line in response.aiter_lines():
            last = line or last
            empty += '"delta":{},"logprobs":null,"finish_reason":null' in line
            if empty == 2:
                engine.go.set()
    assert empty >= 2
    assert last == "data: [DONE]"


async def test_bytes_that_are_no_request_get_the_apis_error() -> None:
    async with listening(FakeEngine()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"llama\r\n\r\n")
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        writer.close()
        await writer.wait_closed()


async def test_a_stream_of_one_client_does_not_wait_for_another() -> None:
    engine = FakeEngine(says("abc"), holds_at=1)
    async with listening(engine) as url, httpx.AsyncClient(base_url=url) as client:
        held = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": True}))
        await engine.becomes(1)
        assert (await client.get("/v1/models")).status_code == 200
        engine.go.set()
        assert (await held).text.endswith("[DONE]\n\n")
