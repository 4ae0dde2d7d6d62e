"""How tests ask: one request through the whole application, without a network, or over a loopback port."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from server.app import Surroundings, make_app
from server.drain import Door
from server.served import Store
from server.web_server import WebServer, bind
from tests.server.fakes import FakeCard, FakeEngine, served

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
Json = Any  # what JSON a response has is what the tests are about


def client_of(engine: FakeEngine, card: FakeCard | None = None) -> httpx.AsyncClient:
    app = make_app(
        Store([served(engine, card)]), Door(capacity=8), Surroundings(["given.example"], ["https://page.example"])
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:7862")


def ask(
    method: str, path: str, *, engine: FakeEngine | None = None, card: FakeCard | None = None, **how: Any
) -> httpx.Response:
    async def once() -> httpx.Response:
        async with client_of(engine or FakeEngine(), card) as client:
            return await client.request(method, path, **how)

    return asyncio.run(once())


def post(path: str, body: Json, engine: FakeEngine | None = None) -> httpx.Response:
    return ask("POST", path, engine=engine, json=body)


def chat(engine: FakeEngine | None = None, **body: Any) -> Json:
    """The answer to a chat that is expected to succeed."""
    response = post(CHAT, {"messages": HELLO, **body}, engine)
    assert response.status_code == 200, response.text
    return response.json()


def complete(engine: FakeEngine | None = None, **body: Any) -> Json:
    response = post(COMPLETE, {"prompt": "hello", **body}, engine)
    assert response.status_code == 200, response.text
    return response.json()


def counts(answer: Json) -> tuple[int, int, int]:
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def stream(path: str, engine: FakeEngine | None = None, **body: Any) -> list[Json]:
    """The chunks of a stream that ends as streams do."""
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    response = post(path, {**asked, "stream": True, **body}, engine)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, end = response.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def text_of(chunks: list[Json], choice: int = 0) -> str:
    """What the chunks of a chat say in a choice."""
    mine = [piece["delta"] for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice]
    return "".join(delta.get("content") or "" for delta in mine)


def listening(
    engine: FakeEngine, door: Door | None = None, queue_time: float | None = None
) -> contextlib.AbstractAsyncContextManager[str]:
    return serving(Store([served(engine)]), door, queue_time)


@contextlib.asynccontextmanager
async def serving(store: Store, door: Door | None = None, queue_time: float | None = None) -> AsyncIterator[str]:
    """The address of a server on a free loopback port, on this event loop."""
    with bind("127.0.0.1", 0) as bound:
        app = make_app(store, door or Door(capacity=8), Surroundings(queue_time=queue_time))
        ready = asyncio.Event()
        server = WebServer(app, ready.set)
        running = asyncio.create_task(server.serve([bound]))
        await asyncio.wait_for(ready.wait(), 10)
        try:
            yield "http://{}:{}".format(*bound.getsockname())
        finally:
            server.should_exit = True
            await running
