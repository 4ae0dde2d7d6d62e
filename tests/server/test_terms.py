"""Laws of a request's terms: who asks, its tier, how long it waits, and what its reply tells of the cost."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from engine.messages import Asker
from server.drain import Door
from tests.server.asking import CHAT, COMPLETE, HELLO, ask, chat, complete, listening, post, stream
from tests.server.fakes import CONTEXT, FakeEngine, says

pytestmark = pytest.mark.anyio

COUNTS = ["prompt_tokens", "cached_tokens", "prefilled_tokens", "completion_tokens"]


def asker_of(body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Asker:
    engine = FakeEngine()
    response = ask("POST", CHAT, engine=engine, json={"messages": HELLO, **(body or {})}, headers=headers)
    assert response.status_code == 200, response.text
    return engine.answers[0].asker


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("auto", "default"),
        ("default", "default"),
        ("flex", "flex"),
        ("priority", "priority"),
        ("fast", "priority"),
        ("scale", "default"),
    ],
)
def test_a_tier_reaches_the_engine_and_is_told_back(asked: str, served: str) -> None:
    assert asker_of({"service_tier": asked}).tier == served
    for answer in (chat(service_tier=asked), complete(service_tier=asked)):
        assert answer["service_tier"] == served
        assert ("warnings" in answer) == (asked == "scale")
    for path in (CHAT, COMPLETE):
        assert {chunk["service_tier"] for chunk in stream(path, service_tier=asked)} == {served}


def test_a_tier_that_was_not_asked_for_is_the_default_and_not_told() -> None:
    assert asker_of().tier == "default"
    assert "service_tier" not in chat()


def test_a_client_is_its_key_and_without_one_its_address() -> None:
    keys = [asker_of(headers={"authorization": f"Bearer {key}"}).client for key in ("sk-a", "sk-a", "sk-b")]
    assert keys[0] == keys[1] != keys[2]
    assert "sk-" not in keys[0]
    for headers in (None, {"authorization": "Bearer "}, {"authorization": "Basic eDp5"}):
        assert asker_of(headers=headers).client == "127.0.0.1"


def test_pages_are_shared_among_requests_of_one_salt() -> None:
    assert (asker_of().salt, asker_of({"cache_salt": "mine"}).salt) == ("", "mine")


def test_a_request_waits_as_long_as_it_says_and_the_server_allows() -> None:
    assert asker_of().patience is None
    assert asker_of({"timeout": 2}).patience == 2


@pytest.mark.parametrize(("asked", "waits", "warned"), [(None, 3, False), (1.5, 1.5, False), (9, 3, True)])
async def test_the_servers_time_is_the_default_and_the_most(asked: float | None, waits: float, warned: bool) -> None:
    engine = FakeEngine()
    async with listening(engine, queue_time=3) as url, httpx.AsyncClient(base_url=url) as client:
        answer = (await client.post(CHAT, json={"messages": HELLO, "timeout": asked})).json()
    assert engine.answers[0].asker.patience == waits
    assert [warning["param"] for warning in answer.get("warnings", [])] == ["timeout"] * warned


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_a_turn_that_does_not_come_is_a_503_that_says_when_to_come_back(path: str, streams: bool) -> None:
    engine = FakeEngine()
    engine.turns.clear()
    said = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    response = post(path, {**said, "timeout": 0.01, "stream": streams}, engine)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_timeout")
    assert int(response.headers["retry-after"]) * 1000 == int(response.headers["retry-after-ms"]) > 0
    assert engine.open == 0


def test_a_turn_that_does_not_come_is_an_event_in_a_stream_that_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.answering.KEEP_ALIVE", 0.01)
    engine = FakeEngine()
    engine.turns.clear()
    first, last = stream(CHAT, engine, timeout=0.5)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["code"] == "queue_timeout"


async def test_a_client_that_leaves_before_its_turn_takes_its_sequence_with_it() -> None:
    engine = FakeEngine()
    engine.turns.clear()
    async with listening(engine) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": True, "timeout": 60}))
        await engine.becomes(1)
        asking.cancel()
        await engine.becomes(0)


async def test_a_server_that_leaves_tells_those_who_wait_for_their_turn() -> None:
    engine, door = FakeEngine(), Door(capacity=8)
    engine.turns.clear()
    async with listening(engine, door) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post(CHAT, json={"messages": HELLO, "stream": True, "timeout": 60}))
        await engine.becomes(1)
        door.close()
        door.expire()
        assert ((await asking).status_code, engine.open) == (503, 0)


async def test_the_openai_package_reads_tier_timeout_and_cost() -> None:
    engine = FakeEngine(says("abc"), cached=5)
    async with (
        listening(engine) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hello"}],
            service_tier="flex",
            prompt_cache_key="conversation",
            extra_body={"timeout": 5, "timings": True, "cache_salt": "mine"},
        )
        assert answer.service_tier == "flex"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 5
        assert answer.model_extra is not None
        assert answer.model_extra["timings"]["cached_tokens"] == 5
        assert "warnings" not in answer.model_extra
        asker = engine.answers[0].asker
        assert (asker.tier, asker.salt, asker.patience) == ("flex", "mine", 5)
        assert "secret" not in asker.client
        engine.turns.clear()
        with pytest.raises(openai.InternalServerError) as late:
            await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hello"}], extra_body={"timeout": 0.01}
            )
        assert (late.value.status_code, late.value.code) == (503, "queue_timeout")


def test_what_was_in_the_cache_is_always_told() -> None:
    for answer in (chat(FakeEngine(cached=4)), complete(FakeEngine(cached=4))):
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    *_, last = stream(CHAT, FakeEngine(cached=4), stream_options={"include_usage": True})
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    for ended_here in ({"stop": "b"}, {"max_tokens": 1}):
        usage = chat(FakeEngine(says("abc"), cached=4), **ended_here)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    ended_early = chat(FakeEngine(says("abc"), cached=4, at_once=True, holds_at=2), stop="b")
    assert ended_early["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_of_many_choices_and_prompts_the_first_choice_of_each_prompt_counts() -> None:
    usage = complete(FakeEngine(cached=3), prompt=["aaaa", "bbbb"], n=2)["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (10, 6)


def test_timings_are_told_to_whoever_asks() -> None:
    assert "timings" not in chat()
    told = chat(FakeEngine(says("abc"), cached=4), timings=True)["timings"]
    prompt = len("user: hello") + 3
    assert [told[name] for name in COUNTS] == [prompt, 4, prompt - 4, 4]
    assert (told["queued_ms"], told["prefill_ms"], told["decode_ms"]) == (250, 500, 2000)
    assert told["prefill_tokens_per_second"] == (prompt - 4) / 0.5
    assert told["decode_tokens_per_second"] == 3 / 2


def test_timings_may_be_asked_for_in_a_header() -> None:
    for value, told in (("1", True), ("0", False)):
        response = ask("POST", CHAT, json={"messages": HELLO}, headers={"puna-timings": value})
        assert ("timings" in response.json()) == told
    response = ask("POST", CHAT, json={"messages": HELLO}, headers={"puna-timings": "maybe"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "puna-timings")


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_a_stream_tells_its_timings_in_its_last_chunk(path: str) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        *others, last = stream(path, FakeEngine(says("abc")), timings=True, n=2, **options)
        assert all("timings" not in chunk for chunk in others)
        assert last["timings"]["completion_tokens"] == 8


def test_choices_take_the_longest_time_and_compute_the_sum() -> None:
    one = chat(FakeEngine(says("abc"), cached=4), timings=True)["timings"]
    three = chat(FakeEngine(says("abc"), cached=4), timings=True, n=3)["timings"]
    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["prefilled_tokens"] == 3 * one["prefilled_tokens"]
    assert three["decode_ms"] == one["decode_ms"]
    assert three["decode_tokens_per_second"] == 3 * one["decode_tokens_per_second"]


def test_a_limit_beyond_the_room_is_warned_of_with_both_numbers() -> None:
    prompt = len("user: hello") + 3
    assert "warnings" in chat(max_tokens=CONTEXT - prompt + 1)
    for name in ("max_tokens", "max_completion_tokens"):
        (warning,) = chat(None, **{name: CONTEXT})["warnings"]
        assert warning["param"] == name
        assert f"{CONTEXT} " in warning["message"]
        assert f"{CONTEXT - prompt} " in warning["message"]
        assert "warnings" not in chat(None, **{name: CONTEXT - prompt})
    (warning,) = complete(max_tokens=CONTEXT)["warnings"]
    assert str(CONTEXT - 6) in warning["message"]
    assert "warnings" not in complete(prompt="x" * (CONTEXT - 5))  # the API's own default is no wish


def test_too_many_choices_are_refused_with_the_limit() -> None:
    error = post(CHAT, {"messages": HELLO, "n": 9}).json()["error"]
    assert error["param"] == "n"
    assert "8" in error["message"]
