"""The law of honesty: every parameter is honoured, refused by name, or warned of."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from server.honesty import CHAT as RULES
from server.schema import ChatRequest, CompletionRequest
from tests.server.asking import CHAT, HELLO, ask, chat, post, stream
from tests.server.fakes import FakeEngine

DEEP = "[" * 100_000 + "]" * 100_000

WRONG: list[tuple[str, object]] = [
    *(("n", value) for value in (0, -1, 9, 2**31, 2**63, 1e308, "5", True, 1.5)),
    *(("temperature", value) for value in (-0.1, 2.1, "1", True)),
    *(("top_p", value) for value in (-0.1, 1.1)),
    *(("top_k", value) for value in (-2, 1.5)),
    *(("min_p", value) for value in (-0.1, 1.1)),
    *(("max_tokens", value) for value in (-1, 0, 2**63, "10", 1.5)),
    ("max_completion_tokens", 0),
    *(("frequency_penalty", value) for value in (-2.1, 2.1)),
    *(("presence_penalty", value) for value in (-2.1, 2.1)),
    *(("repetition_penalty", value) for value in (0, -1)),
    *(("seed", value) for value in (2**63, "1", 1.5)),
    *(("stop", value) for value in ("", ["a", ""], ["a"] * 17, "x" * 501, 5)),
    *(("top_logprobs", value) for value in (21, -1)),
    ("top_logprobs", 1),  # without logprobs
    ("logprobs", 1),
    *(("logit_bias", value) for value in ({"05": 1}, {"x": 1}, {"-1": 1}, {"260": 1}, {"1": 101}, {"1": "1"}, [1])),
    ("logit_bias", {str(token): 1 for token in range(100_000)}),
    ("stop", "\ud800"),
    ("stream", "yes"),
    ("stream_options", []),
    ("tools", {}),
    ("tools", [{"type": "web_search"}]),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("chat_template_kwargs", {"x": {"y": 1}}),
    *(("service_tier", value) for value in ("ultra", 1)),
    *(("timeout", value) for value in (0, -1, 86_401, "5")),
    *(("cache_salt", value) for value in (5, "x" * 513, "\ud800")),
    *(("prompt_cache_key", value) for value in (5, "x" * 513)),
    ("truncation", "middle"),
    ("timings", 1),
    ("messages", []),
    ("messages", "hello"),
    ("messages", [*HELLO, {"role": "wizard", "content": "x"}]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": "\ud800"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_by_name_before_any_work(name: str, value: object) -> None:
    engine = FakeEngine()
    response = ask("POST", CHAT, engine=engine, content=json.dumps({"messages": HELLO, name: value}), headers=JSON)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert error["param"].split(".")[0] == name
    assert error["type"] == "invalid_request_error"
    assert len(response.text) < 2000
    assert not engine.answers


JSON = {"content-type": "application/json"}


MANY = 1000


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [0] * MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * MANY}]}),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [0] * MANY}]}),
        (ChatRequest, {"messages": HELLO, "tools": [0] * MANY}),
        (ChatRequest, {"messages": HELLO, "stop": [0] * MANY}),
        (ChatRequest, {"messages": HELLO, "logit_bias": dict.fromkeys(map(str, range(10 * MANY)), "x")}),
        (ChatRequest, {"messages": HELLO, "chat_template_kwargs": {str(i): [] for i in range(MANY)}}),
        (CompletionRequest, {"prompt": [{}] * MANY}),
        (CompletionRequest, {"prompt": [[{}] * MANY] * MANY}),
    ],
)
def test_a_body_full_of_faults_is_refused_for_its_first_few(model: type[BaseModel], body: object) -> None:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(body)
    assert refusal.value.error_count() < 10


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(literal: str) -> None:
    body = f'{{"messages": {json.dumps(HELLO)}, "temperature": {literal}}}'
    assert ask("POST", CHAT, content=body, headers=JSON).status_code == 400


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "3", "\xff", DEEP, '{"messages": ' + DEEP + "}"])
def test_a_body_that_is_no_request_is_refused(body: str) -> None:
    response = ask("POST", CHAT, content=body.encode("latin-1"), headers=JSON)
    assert response.status_code == 400, response.text[:200]
    assert response.json()["error"]["message"]


def test_the_fault_is_named_where_it_lies() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": 5}]
    response = post(CHAT, {"messages": [*HELLO, {"role": "user", "content": parts}]})
    assert response.json()["error"]["param"] == "messages.1.content.1.text"


REFUSED = {name for name, rule in RULES.items() if rule.refuses}


@pytest.mark.parametrize("name", sorted(name for name in REFUSED if "." not in name))
def test_what_must_not_be_ignored_is_refused_by_name(name: str) -> None:
    response = post(CHAT, {"messages": HELLO, name: {"type": "json_object"}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert response.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize("name", sorted(name for name in RULES.keys() - REFUSED if "." not in name))
def test_what_has_no_effect_is_warned_of(name: str) -> None:
    assert [warning["param"] for warning in chat(None, **{name: "something"})["warnings"]] == [name]


@pytest.mark.parametrize(("name", "rule"), [item for item in RULES.items() if "." not in item[0]], ids=str)
def test_a_value_that_changes_nothing_is_silent(name: str, rule: object) -> None:
    for value in (None, *RULES[name].neutral):
        assert "warnings" not in chat(None, **{name: value})


def test_an_unknown_parameter_is_warned_of_wherever_it_is() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": 1}] * 5, "mood": "good"}]
    warnings = chat(messages=messages, temprature=0)["warnings"]
    assert {warning["param"] for warning in warnings} == {
        "temprature",
        "messages.0.mood",
        "messages.0.content.0.cache_control",
    }
    assert all("ignored" in warning["message"] for warning in warnings)


def test_half_a_surrogate_pair_breaks_nothing() -> None:
    body = json.dumps({"messages": HELLO, "\ud800": 1})
    assert ask("POST", CHAT, content=body, headers=JSON).status_code == 400
    body = json.dumps({"messages": HELLO, "logit_bias": {"\ud800": "\ud800"}})
    assert ask("POST", CHAT, content=body, headers=JSON).status_code == 400


def test_a_stream_warns_in_its_first_chunk() -> None:
    first, *others = stream(CHAT, temprature=0)
    assert first["warnings"][0]["param"] == "temprature"
    assert all("warnings" not in chunk for chunk in others)


def test_warnings_do_not_grow_without_bound() -> None:
    warnings = chat(None, **{f"x{number}{'y' * 1000}": 1 for number in range(1000)})["warnings"]
    assert len(warnings) == 33
    assert all(len(warning["message"]) < 300 for warning in warnings)


def test_strict_tools_are_warned_of() -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    assert chat(tools=[tool])["warnings"][0]["param"] == "tools.0.function.strict"
