"""Laws of the questions about engines: they are answered when the house is full, and nobody sees another's words."""

import asyncio
from typing import Any

import httpx
import pytest

from engine.messages import CacheState, DiskState, Report, RequestState
from server.drain import Door
from server.served import Store
from tests.server.asking import CHAT, HELLO, ask, client_of, listening, serving
from tests.server.fakes import FakeEngine, says, served

pytestmark = pytest.mark.anyio

DISK = DiskState(5, 500, 1000, 7, 3, 1, None)
CACHE = CacheState(32, 64, 10, 20, 34, 4, 200, 150, 2, 1, 0, DISK)
RUNNING = RequestState(1, "decode", "key-1", "flex", 50, 60, 32, 10, 3, 1.5)
QUEUED = RequestState(2, "queued", "127.0.0.1", "default", 80, 0, 0, 0, 0, 0.5)
REPORT = Report((RUNNING, QUEUED), CACHE)
LONG = "a prompt that is long enough to be worth a word. " * 6


def test_sequences_are_listed_with_their_states() -> None:
    told = ask("GET", "/v1/puna/requests", engine=FakeEngine(report_of=REPORT)).json()
    first, second = told["models"]["fake"]["requests"]
    assert first == {
        "id": 1,
        "state": "decode",
        "client": "key-1",
        "tier": "flex",
        "prompt": 50,
        "computed": 60,
        "cached": 32,
        "answered": 10,
        "pages": 3,
        "seconds": 1.5,
    }
    assert (second["state"], second["client"]) == ("queued", "127.0.0.1")


def test_the_cache_is_told_with_its_disk_and_its_rate() -> None:
    told = ask("GET", "/v1/puna/cache", engine=FakeEngine(report_of=REPORT)).json()["models"]["fake"]
    assert (told["pages"], told["free"], told["held"], told["cached"]) == (64, 10, 20, 34)
    assert told["hit_rate"] == 0.75
    assert told["disk"]["restored"] == 3
    assert told["misses"] == []
    nothing = Report((), CacheState(32, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, None))
    told = ask("GET", "/v1/puna/cache", engine=FakeEngine(report_of=nothing)).json()["models"]["fake"]
    assert (told["hit_rate"], told["disk"]) == (None, None)


@pytest.mark.parametrize("path", ["/v1/puna/requests", "/v1/puna/cache"])
async def test_an_engine_that_is_down_is_a_503_beside_what_the_others_say(path: str) -> None:
    up, down = served(FakeEngine(report_of=REPORT)), served(FakeEngine())
    store = Store([up, type(down)("other", down.card, down.engine)])
    async with serving(store) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.get(path)
    told = response.json()
    assert (response.status_code, told["error"]["code"]) == (503, "engine_down")
    assert "other" in told["error"]["message"]
    assert int(response.headers["retry-after"]) > 0
    assert told["models"]["fake"]
    assert told["models"]["other"] is None


async def test_an_engine_that_does_not_answer_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.puna_routes.PATIENCE", 0.01)
    engine = FakeEngine()
    monkeypatch.setattr(engine, "report", asyncio.Event().wait)
    async with client_of(engine) as client:
        assert (await client.get("/v1/puna/cache")).status_code == 503


async def test_questions_are_answered_when_the_house_is_full() -> None:
    engine = FakeEngine(says("abc"), holds_at=0, report_of=REPORT)
    async with listening(engine, Door(capacity=1)) as url, httpx.AsyncClient(base_url=url) as client:
        inside = asyncio.create_task(client.post(CHAT, json={"messages": HELLO}))
        await engine.becomes(1)
        assert (await client.post(CHAT, json={"messages": HELLO})).status_code == 503
        for path in ("/v1/puna/requests", "/v1/puna/cache"):
            assert (await client.get(path)).status_code == 200
        engine.go.set()
        assert (await inside).status_code == 200


async def test_a_miss_is_listed_for_all_and_its_words_for_its_client_alone() -> None:
    engine = FakeEngine(says("yes"), report_of=REPORT)
    mine, other = {"authorization": "Bearer mine"}, {"authorization": "Bearer other"}
    async with client_of(engine) as client:

        async def misses(headers: dict[str, str]) -> Any:
            return (await client.get("/v1/puna/cache", headers=headers)).json()["models"]["fake"]["misses"]

        for prompt, cached in ((LONG, 0), (LONG[:80] + "secret" * 20, 81)):
            engine.cached = cached
            body = {"prompt": prompt, "prompt_cache_key": "k", "max_tokens": 1}
            assert (await client.post("/v1/completions", json=body, headers=mine)).status_code == 200
        (seen,), (hidden,) = await misses(mine), await misses(other)
        assert (seen["kind"], seen["position"], seen["prompt_cache_key"]) == ("differs", 81, "k")
        assert seen["now"].startswith("secret")
        assert (hidden["kind"], hidden["position"], hidden["client"]) == ("differs", 81, seen["client"])
        assert not hidden.keys() & {"was", "now", "after", "message", "prompt_cache_key"}
        assert "mine" not in seen["client"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/fake", "/v1/puna/cache", "/openapi.json"])
async def test_the_head_of_what_can_be_read_is_the_same_without_a_body(path: str) -> None:
    async with (
        listening(FakeEngine(report_of=REPORT)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        whole, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        again = await client.get("/health")  # on the same connection
        assert again.status_code == 200


def test_the_head_of_what_cannot_be_read_is_refused() -> None:
    for path, status in (("/nowhere", 404), (CHAT, 405)):
        assert ask("HEAD", path).status_code == status
