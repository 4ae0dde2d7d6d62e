"""Every error has the API's one shape, and foreign names get nothing else."""

import asyncio

import pytest

from quant.errors import EngineError
from server.limits import LARGEST_BODY, BodyLimits
from tests.server.asking import CHAT, HELLO, ask, post, stream
from tests.server.fakes import FakeEngine, says

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "code"),
    [
        ("GET", "/nowhere", {}, "", 404, None),
        ("GET", CHAT, {}, "", 405, None),
        ("POST", CHAT, {"content-type": "text/plain"}, '{"messages": []}', 415, "unsupported_media_type"),
        ("POST", CHAT, {}, "", 415, "unsupported_media_type"),
        ("POST", CHAT, JSON, "x" * (LARGEST_BODY + 1), 413, "body_too_large"),
        ("GET", "/v1/models/none", {}, "", 404, "model_not_found"),
    ],
)
def test_errors_have_one_shape(
    method: str, path: str, headers: dict[str, str], content: str, status: int, code: str | None
) -> None:
    response = ask(method, path, headers=headers, content=content)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    response = post(CHAT, {"messages": HELLO, "model": "gpt-x"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "fake" in error["message"]


def test_a_body_that_grows_beyond_its_word_is_cut_off() -> None:
    async def forever() -> object:
        for _ in range(LARGEST_BODY // 2**20 + 1):
            yield b" " * 2**20

    response = ask("POST", CHAT, headers=JSON, content=forever())
    assert response.status_code == 413


def test_an_engine_that_takes_nothing_is_an_error_of_the_server() -> None:
    response = post(CHAT, {"messages": HELLO}, FakeEngine(fault=EngineError("the engine died again and again")))
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "engine_error")
    assert "again" in error["message"]


def test_an_engine_that_dies_is_an_error_of_the_server() -> None:
    response = post(CHAT, {"messages": HELLO}, FakeEngine(says("abc"), dies_at=1))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")


@pytest.mark.parametrize("at_once", [False, True])
def test_a_stream_whose_engine_dies_says_so_and_ends(at_once: bool) -> None:
    *chunks, last = stream(CHAT, FakeEngine(says("abc"), dies_at=2, at_once=at_once))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "ab"
    assert last["error"]["code"] == "engine_error"


def test_one_choice_that_fails_ends_the_others() -> None:
    engine = FakeEngine(says("abc"), dies_at=2)
    post(CHAT, {"messages": HELLO, "n": 3}, engine)
    assert all(answer.cancelled for answer in engine.answers)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:7862",
        "[::1]:7862",
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "192.168.1.20:7862",
        "given.example:7862",
    ],
)
def test_our_names_are_answered(host: str) -> None:
    assert ask("GET", "/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.localhost.evil.com",
        "127.0.0.1.nip.io",
        "localhost.evil.com",
        "",
        "[",
        "[::1",
        "a@127.0.0.2.x",
        "é",
    ],
)
def test_foreign_names_are_not(host: str) -> None:
    response = ask("GET", "/health", headers={"host": host.encode()})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")


def test_two_names_are_none() -> None:
    assert ask("GET", "/health", headers=[("host", "localhost"), ("host", "localhost")]).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "", "file://", "https://localhost.evil.com"])
def test_pages_from_elsewhere_are_refused(origin: str) -> None:
    response = ask("POST", CHAT, json={"messages": HELLO}, headers={"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_pages_that_were_given_may_ask() -> None:
    origin = {"origin": "https://page.example"}
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert ask("OPTIONS", CHAT, headers=asked).headers["access-control-allow-origin"] == "https://page.example"
    response = ask("POST", CHAT, json={"messages": HELLO}, headers=origin)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BodyLimits.__init__, "__defaults__", (LARGEST_BODY, 0.01))

    async def never() -> object:
        yield b"{"
        await asyncio.Event().wait()

    assert ask("POST", CHAT, headers=JSON, content=never()).status_code == 408


def test_models_are_listed_with_their_context() -> None:
    listed = ask("GET", "/v1/models").json()
    assert [(model["id"], model["object"], model["context_length"]) for model in listed["data"]] == [
        ("fake", "model", 512)
    ]
    assert ask("GET", "/v1/models/fake").json() == listed["data"][0]


def test_health_tells_of_an_engine_that_is_down() -> None:
    assert ask("GET", "/health").json() == {"status": "ok", "models": {"fake": "ok"}, "requests": 0}
    response = ask("GET", "/health", engine=FakeEngine(alive=False))
    assert (response.status_code, response.json()["models"]) == (503, {"fake": "down"})
