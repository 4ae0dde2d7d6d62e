"""Laws of closed connections, with a real engine behind a real socket: whoever leaves lets go of his pages.

Requests of others decode meanwhile, so steps go on. As soon as the server has told the engine of the one that left, the
engine is asked how things stand, and answers before one of its next steps: no sequence may still be there.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from engine.client import EngineClient, Request
from engine.messages import EngineSpec, Report
from kvcache.pages import PAGE
from server.drain import Door
from server.loading import open_models
from tests.server.asking import COMPLETE, Json, serving
from tests.tiny_models import write_gguf
from tests.tiny_tokenizer import BEGIN, END

pytestmark = pytest.mark.anyio

PATIENCE = 60  # seconds, for what takes a fraction of one
CONTEXT = 16384
BATCH = 2
LONG, SHORT, ANSWER = 12000, 640, 4000  # tokens; the long prompt takes about a second

Reached = Callable[[Json], bool]  # whether a request is in a state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model"), "llama", kind="q4_k", context=CONTEXT)


@dataclass(frozen=True)
class Talk:
    """A server, and what it says of itself."""

    url: str
    client: httpx.AsyncClient
    left: asyncio.Queue[asyncio.Task[Report]]  # what the engine said when it was told of one that left

    async def connected(self, prompt: list[int], streams: bool = True) -> asyncio.StreamWriter:
        """A connection that asked for an answer which would take long."""
        body = {"prompt": prompt, "stream": streams, "max_tokens": ANSWER, "logit_bias": {str(END): -100}}
        content = json.dumps(body).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(self.url).port)
        head = f"POST {COMPLETE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return writer

    async def requests(self) -> dict[int, Json]:
        """By the number of their prompt's tokens."""
        (model,) = (await self.got("/v1/puna/requests"))["models"].values()
        return {one["prompt"]: one for one in model["requests"]}

    async def become(self, wanted: dict[int, Reached]) -> dict[int, Json]:
        """The requests as soon as these are there, each in its state."""
        while True:
            seen = await self.requests()
            if seen.keys() == wanted.keys() and all(wanted[prompt](one) for prompt, one in seen.items()):
                return seen

    async def cache(self) -> Json:
        (model,) = (await self.got("/v1/puna/cache"))["models"].values()
        return model

    async def got(self, path: str) -> Json:
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        return response.json()


@contextlib.asynccontextmanager
async def talking(model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Talk]:
    left: asyncio.Queue[asyncio.Task[Report]] = asyncio.Queue()
    cancel = EngineClient.cancel

    def watched(client: EngineClient, request: Request) -> None:
        cancel(client, request)
        left.put_nowait(asyncio.create_task(client.report()))

    monkeypatch.setattr(EngineClient, "cancel", watched)
    store = await open_models([model], EngineSpec(path="", device="cpu", context=CONTEXT, max_batch=BATCH))
    try:
        async with (
            serving(store, Door(capacity=8)) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
            asyncio.timeout(PATIENCE),
        ):
            yield Talk(url, client, left)
    finally:
        await store.close()


@dataclass(frozen=True)
class Place:
    """A state in which a request is left: how many others decode, how long its prompt is, how to know it is there."""

    others: int
    prompt: int
    reached: Reached


def decodes(one: Json) -> bool:
    return bool(one["state"] == "decode" and one["answered"] > 0)


PLACES = {
    "queued": Place(BATCH, SHORT, lambda one: one["state"] == "queued"),
    "prefilling": Place(1, LONG, lambda one: one["state"] == "prefill" and one["computed"] > 0),
    "decoding": Place(1, SHORT, decodes),
}


def prompt_of(tokens: int) -> list[int]:
    """Two of them differ in their first token, and share no page."""
    return [(tokens + place) % BEGIN for place in range(tokens)]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_a_closed_connection_takes_its_sequence_along_and_what_it_held(
    model: Path, place: Place, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(model, monkeypatch) as talk:
        others: dict[int, Reached] = {32 + number: decodes for number in range(place.others)}
        connections = [await talk.connected(prompt_of(tokens)) for tokens in others]
        await talk.become(others)
        leaving = await talk.connected(prompt_of(place.prompt), streams)
        before = await talk.become(others | {place.prompt: place.reached})
        leaving.close()
        report = await (await talk.left.get())
        assert {one.prompt for one in report.requests} == set(others)
        assert report.cache.held == sum(one.pages for one in report.requests)
        assert report.cache.cached >= before[place.prompt]["computed"] // PAGE
        for connection in connections:
            connection.close()
        assert await talk.become({}) == {}
        cache = await talk.cache()
        assert (cache["held"], cache["free"] + cache["cached"]) == (0, cache["pages"])


async def test_a_prompt_that_was_left_goes_on_from_there_when_it_comes_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(model, monkeypatch) as talk:
        leaving = await talk.connected(prompt_of(LONG))
        before = await talk.become({LONG: PLACES["prefilling"].reached})
        leaving.close()
        await talk.become({})
        again = await talk.client.post(COMPLETE, json={"prompt": prompt_of(LONG), "max_tokens": 1})
        cached = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert before[LONG]["computed"] // PAGE * PAGE <= cached < LONG
