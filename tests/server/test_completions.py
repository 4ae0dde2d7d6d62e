"""Laws of POST /v1/completions."""

import pytest

from tests.server.asking import COMPLETE, complete, counts, post, stream
from tests.server.fakes import BOS, CONTEXT, FakeEngine, says


def test_an_answer_has_the_shape_of_the_api() -> None:
    answer = complete(FakeEngine(says("world")))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "world", "logprobs": None, "finish_reason": "stop"}]
    assert counts(answer) == (6, 6, 12)


def test_a_stream_says_what_the_whole_answer_says() -> None:
    chunks = stream(COMPLETE, FakeEngine(says("wörld")))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "wörld"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_default_limit_is_that_of_the_api() -> None:
    answer = complete(FakeEngine(says("x" * 50)))
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("x" * 16, "length")


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        ("<|bos|>a", [[BOS, 97]]),
        ("", [[BOS]]),
    ],
)
def test_every_form_of_prompt_is_read(prompt: object, read: list[list[int]]) -> None:
    engine = FakeEngine(says("x"))
    answer = complete(engine, prompt=prompt)
    assert [one.prompt for one in engine.answers] == read
    assert answer["usage"]["prompt_tokens"] == sum(map(len, read))


def test_choices_come_in_the_order_of_their_prompts() -> None:
    answer = complete(prompt=["a", "b"], n=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "a"),
        (1, "a"),
        (2, "b"),
        (3, "b"),
    ]


@pytest.mark.parametrize("prompt", ["hello", list(b"hello")])
def test_echo_puts_the_prompt_first(prompt: object) -> None:
    assert complete(FakeEngine(says(" you")), prompt=prompt, echo=True)["choices"][0]["text"] == "hello you"
    chunks = stream(COMPLETE, FakeEngine(says(" you")), prompt=prompt, echo=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello you"


def test_logprobs_count_their_offsets_from_the_texts_beginning() -> None:
    wire = complete(FakeEngine(says("abc")), logprobs=1)["choices"][0]["logprobs"]
    assert wire["tokens"] == ["a", "b", "c"]
    assert wire["text_offset"] == [0, 1, 2]
    assert wire["token_logprobs"] == [-0.5] * 3
    assert wire["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]
    chunks = stream(COMPLETE, FakeEngine(says("abc")), logprobs=1)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for one in told for offset in one["text_offset"]] == [0, 1, 2]


def test_alternatives_hold_the_token_that_was_chosen() -> None:
    wire = complete(FakeEngine(says("a")), logprobs=0)["choices"][0]["logprobs"]
    assert wire["top_logprobs"] == [{"a": -0.5}]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": [97, 260]}, "prompt.1"),
        ({"prompt": [[97], [-1]]}, "prompt.1.0"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x" * CONTEXT}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": ["x"] * 64, "n": 8}, "n"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "truncation": "auto"}, "truncation"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(asked: dict[str, object], param: str) -> None:
    engine = FakeEngine()
    response = post(COMPLETE, asked, engine)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param)
    assert not engine.answers
