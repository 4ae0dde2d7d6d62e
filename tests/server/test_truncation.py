"""Laws of truncation: nothing is left out unless the request says so, and then whole turns, oldest first, and told."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat_prompt import turns_of
from server.schema import Message
from tests.server.asking import CHAT, chat, post
from tests.server.fakes import CONTEXT, FakeEngine, says

Said = dict[str, Any]


def said(role: str, text: str, **more: Any) -> Said:
    return {"role": role, "content": text, **more}


def turn(number: int, length: int = 40) -> list[Said]:
    return [said("user", f"question {number} {'?' * length}"), said("assistant", f"answer {number} {'!' * length}")]


SYSTEM = said("system", "be kind")
TURNS = [message for number in range(8) for message in turn(number)]
LAST = said("user", "the last question")


def prompt_of(messages: list[Said], **body: Any) -> tuple[str, list[Any]]:
    """What the model reads, and the warnings."""
    engine = FakeEngine(says("yes"))
    answer = chat(engine, messages=messages, **body)
    text = "".join(chr(token) if token < 256 else "|" for token in engine.answers[0].prompt)
    return text, answer.get("warnings", [])


def size(messages: list[Said]) -> int:
    """Tokens of the prompt: bytes, a control token for each message, and those at both ends."""
    return 2 + sum(1 + len(f"{message['role']}: {message['content']}") for message in messages)


def test_without_it_a_conversation_that_is_too_long_is_refused() -> None:
    for truncation in ("disabled", None):
        response = post(CHAT, {"messages": [*TURNS, LAST], "truncation": truncation})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_with_it_the_oldest_turns_are_left_out_and_counted() -> None:
    text, (warning,) = prompt_of([SYSTEM, *TURNS, LAST], truncation="auto")
    kept = [number for number in range(8) if f"question {number} " in text]
    assert kept == list(range(kept[0], 8))
    assert [number for number in range(8) if f"answer {number} " in text] == kept
    assert "be kind" in text
    assert "the last question" in text
    assert warning["param"] == "truncation"
    assert f"{2 * kept[0]} of {len(TURNS) + 2} messages were left out" in warning["message"]


def test_as_few_as_possible_are_left_out() -> None:
    for tokens in (1, 50, 200):
        messages = [*TURNS, LAST]
        text, (warning,) = prompt_of(messages, truncation="auto", max_tokens=tokens)
        assert len(text) + tokens <= CONTEXT
        gone = int(warning["message"].split(": ")[1].split(" of ")[0])
        assert len(text) == size(messages[gone:])
        assert size(messages[gone - 2 :]) + tokens > CONTEXT


def test_what_fits_is_left_as_it_is() -> None:
    messages = [SYSTEM, *turn(1), LAST]
    assert prompt_of(messages, truncation="auto") == prompt_of(messages)


def test_room_that_is_not_asked_for_is_a_quarter_of_the_context() -> None:
    text, _ = prompt_of([*TURNS, LAST], truncation="auto")
    assert len(text) <= CONTEXT * 3 // 4 < len(text) + len("user: question 0 assistant: answer 0 ") + 84


def test_a_wish_for_very_many_tokens_does_not_drive_the_conversation_out() -> None:
    text, warnings = prompt_of([*TURNS, LAST], truncation="auto", max_tokens=10**6)
    assert "question 7 " in text
    assert [warning["param"] for warning in warnings] == ["truncation", "max_tokens"]


def test_a_last_turn_that_leaves_little_room_is_still_answered() -> None:
    text, _ = prompt_of([*TURNS, said("user", "x" * (CONTEXT - 50))], truncation="auto")
    assert "question" not in text


def test_a_last_turn_that_does_not_fit_is_refused() -> None:
    response = post(CHAT, {"messages": [*TURNS, said("user", "x" * CONTEXT)], "truncation": "auto"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")


def test_a_conversation_that_is_far_too_long_is_cut_as_well() -> None:
    text, _ = prompt_of([said("user", "x" * 100 * CONTEXT), said("assistant", "y"), LAST], truncation="auto")
    assert "x" not in text.replace("last", "")


CALLS = st.integers(0, 3).map(str)
MESSAGES = st.lists(
    st.one_of(
        st.sampled_from(["user", "assistant", "system", "developer"]).map(
            lambda role: Message.model_validate(said(role, "x"))
        ),
        CALLS.map(lambda name: Message.model_validate(said("assistant", "", tool_calls=[call(name)]))),
        CALLS.map(lambda name: Message(role="tool", content="x", tool_call_id=name)),
    ),
    min_size=1,
    max_size=12,
)


def call(name: str) -> Said:
    return {"id": name, "function": {"name": "f", "arguments": "{}"}}


@settings(max_examples=500)
@given(MESSAGES, st.integers(0, 12))
def test_a_result_never_stays_without_its_call(messages: list[Message], dropped: int) -> None:
    turns = turns_of(messages)
    gone = {at for turn in turns[:dropped] for at in turn}
    called: dict[str, int] = {}
    for at, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id in called:
            assert (at in gone) == (called[message.tool_call_id] in gone)
        for one in message.tool_calls or []:
            called[one.id or ""] = at
    assert all(messages[at].role not in ("system", "developer") for at in gone)
    users = [at for at, message in enumerate(messages) if message.role == "user"]
    assert not users or users[-1] not in gone
    assert len(gone) < len(messages), "something stays"


@pytest.mark.parametrize("first", ["assistant", "user"])
def test_a_conversation_may_begin_with_either(first: str) -> None:
    text, _ = prompt_of([said(first, "hello " * 40), *TURNS, LAST], truncation="auto")
    assert "hello" not in text
