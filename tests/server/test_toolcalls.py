"""Laws of splitting tool calls from words, and of how chats tell of them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.toolcalls import ToolCall, ToolSplitter
from tests.server.asking import CHAT, HELLO, chat, post, stream, text_of
from tests.server.fakes import FakeEngine, says

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
OTHER = '<tool_call>{"arguments": {}, "name": "now"}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def split(pieces: list[str]) -> list[str | tuple[str, str]]:
    """What comes out, with neighbouring words joined."""
    splitter = ToolSplitter(lambda: "id")
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    joined: list[str | tuple[str, str]] = []
    for part in parts:
        if isinstance(part, ToolCall):
            joined.append((part.name, part.arguments))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


WHOLE = f"Let me see.\n{CALL}\n{OTHER}\n"
SPLIT = ["Let me see.", ("weather", '{"city":"Köln"}'), ("now", "{}")]


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_what_comes_out_does_not_depend_on_the_cuts(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    assert split([WHOLE[a:b] for a, b in pairwise(edges)]) == SPLIT


@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", "a", " ", "\n", "<tool", "_call>"]), max_size=9)
)
def test_what_is_no_call_comes_out_as_it_came_in(pieces: list[str]) -> None:
    assert "".join(part for part in split(pieces) if isinstance(part, str)) == "".join(pieces)


def test_a_call_counts_when_the_model_ends_without_closing_it() -> None:
    assert split([CALL.removesuffix("</tool_call>")]) == [SPLIT[1]]


@pytest.mark.parametrize(
    "inside", ["", "[]", '{"name": 1}', '{"name": "f", "arguments": "x"}', '{"name": "f"', "[" * 100_000, "nonsense"]
)
def test_a_broken_call_is_words(inside: str) -> None:
    text = f"<tool_call>{inside}</tool_call>"
    assert split([text]) == [text]


def test_a_chat_with_tools_answers_with_calls() -> None:
    choice = chat(FakeEngine(says(WHOLE)), tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "now"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln"}
    assert len({call["id"] for call in calls}) == 2


def test_a_streamed_call_is_numbered_and_no_tag_is_shown() -> None:
    chunks = stream(CHAT, FakeEngine(says(WHOLE)), tools=TOOLS)
    assert text_of(chunks) == "Let me see."
    deltas = [piece["delta"] for chunk in chunks for piece in chunk["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "now")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_one_call_only_when_calls_may_not_be_parallel() -> None:
    engine = FakeEngine(says(WHOLE))
    choice = chat(engine, tools=TOOLS, parallel_tool_calls=False)["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"
    assert engine.answers[0].cancelled


@pytest.mark.parametrize("asked", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_the_text_is_left_alone(asked: dict[str, object]) -> None:
    choice = chat(FakeEngine(says(CALL)), **asked)["choices"][0]
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


def test_the_template_sees_tools_and_arguments_as_objects() -> None:
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [called]}]
    said = chat(messages=messages, tools=TOOLS)["choices"][0]["message"]["content"]
    assert "'arguments': {'city': 'Rom'}" in said
    assert "'name': 'weather', 'parameters': {'type': 'object'}" in said


def test_arguments_that_are_no_object_are_refused_by_name() -> None:
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "[1]"}}
    response = post(CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [called]}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.1.tool_calls.0.function.arguments"
