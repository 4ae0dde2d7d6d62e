"""Laws of POST /v1/chat/completions, over an engine that reads from a script."""

from dataclasses import replace

import pytest

from tests.server.asking import CHAT, COMPLETE, HELLO, Json, ask, chat, counts, post, stream, text_of
from tests.server.fakes import CONTEXT, END, FakeCard, FakeEngine, PlainTemplate, byte_tokenizer, says

TEXT = "Grüße, 你好 🦙!"


def test_an_answer_has_the_shape_of_the_api() -> None:
    answer = chat(FakeEngine(says(TEXT)))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = len("user: hello") + 3  # BOS and two roles
    made = len(TEXT.encode()) + 1
    assert counts(answer) == (prompt, made, prompt + made)
    assert "warnings" not in answer


def test_a_stream_says_what_the_whole_answer_says() -> None:
    chunks = stream(CHAT, FakeEngine(says(TEXT)))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_never_cuts_a_character() -> None:
    assert "\ufffd" not in text_of(stream(CHAT, FakeEngine(says(TEXT))))


@pytest.mark.parametrize(
    "body", [{}, {"logprobs": True, "top_logprobs": 1}, {"n": 3}, {"max_tokens": 9}, {"stop": "🦙"}]
)
def test_tokens_that_wait_are_told_together_and_say_the_same(body: dict[str, object]) -> None:
    apart, at_once = (stream(CHAT, FakeEngine(says(TEXT), at_once=late), seed=1, **body) for late in (False, True))
    assert len(at_once) < len(apart)
    assert digest(at_once) == digest(apart)


def digest(chunks: list[Json]) -> tuple[list[str], list[list[Json]], list[str]]:
    """Of each choice its words, its logprobs, its end."""
    pieces = [piece for chunk in chunks for piece in chunk["choices"]]
    of = [[piece for piece in pieces if piece["index"] == index] for index in range(3)]
    logprobs = [[entry for one in mine if one["logprobs"] for entry in one["logprobs"]["content"]] for mine in of]
    return [text_of(chunks, index) for index in range(3)], logprobs, [mine[-1]["finish_reason"] for mine in of if mine]


def test_usage_comes_last_and_only_when_asked_for() -> None:
    assert all("usage" not in chunk for chunk in stream(CHAT))
    *chunks, last = stream(CHAT, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens_is_kept_and_told(name: str) -> None:
    answer = chat(FakeEngine(says("abcdef")), **{name: 3})
    assert answer["choices"][0]["message"]["content"] == "abc"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_the_newer_limit_wins() -> None:
    assert chat(FakeEngine(says("abcdef")), max_tokens=1, max_completion_tokens=4)["usage"]["completion_tokens"] == 4


def test_without_a_limit_the_context_is_the_limit() -> None:
    engine = FakeEngine()
    prompt = chat(engine)["usage"]["prompt_tokens"]
    chat(engine, max_tokens=10**9)
    assert [answer.sampling.max_tokens for answer in engine.answers] == [CONTEXT - prompt] * 2


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers() -> None:
    engine = FakeEngine()
    response = post(CHAT, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}, engine)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert str(CONTEXT + len("user: ") + 3) in error["message"]
    assert str(CONTEXT) in error["message"]
    assert not engine.answers


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_a_text_that_is_far_too_long_is_refused_for_its_beginning(path: str) -> None:
    """Its ids alone would take a hundred bytes for each character."""
    text = "x" * (100 * CONTEXT)
    response = post(path, {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"more than {2 * CONTEXT} tokens" in error["message"]
    assert error["message"].endswith(str(CONTEXT))


class SilentTemplate(PlainTemplate):
    def render(self, *_: object, **__: object) -> str:
        return ""


def test_a_template_that_writes_nothing_is_no_fault_of_the_engine() -> None:
    engine = FakeEngine()
    card = FakeCard(replace(byte_tokenizer(), add_bos=False), SilentTemplate())
    response = ask("POST", CHAT, engine=engine, card=card, json={"messages": HELLO})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
    assert not engine.answers


def test_every_sampling_parameter_reaches_the_engine() -> None:
    engine = FakeEngine()
    asked = {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 7,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "frequency_penalty": -1.0,
        "presence_penalty": 2,
        "seed": 42,
    }
    chat(engine, **asked, logit_bias={"65": -100, "66": 1.5})
    sampling = engine.answers[0].sampling
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.logit_bias == {65: -100.0, 66: 1.5}
    assert sampling.stop_tokens == (END,)
    assert sampling.logprobs is None


def test_null_means_absent() -> None:
    engine = FakeEngine()
    names = ["temperature", "top_p", "seed", "stop", "n", "tools", "logprobs", "stream", "max_tokens", "user", "store"]
    assert "warnings" not in chat(engine, **dict.fromkeys(names))


def test_a_negative_seed_is_a_seed() -> None:
    engine = FakeEngine()
    chat(engine, seed=-1)
    assert engine.answers[0].sampling.seed == 2**64 - 1


def test_choices_have_their_own_seeds_and_the_first_has_the_requests() -> None:
    engine = FakeEngine()
    answer = chat(engine, seed=7, n=4)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    seeds = [answer.sampling.seed for answer in engine.answers]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4


def test_without_a_seed_each_request_has_another() -> None:
    engine = FakeEngine()
    chat(engine)
    chat(engine)
    assert engine.answers[0].sampling.seed != engine.answers[1].sampling.seed


def test_choices_stream_side_by_side() -> None:
    chunks = stream(CHAT, FakeEngine(says(TEXT)), n=3)
    assert [text_of(chunks, choice) for choice in range(3)] == [TEXT] * 3
    assert sum(piece["finish_reason"] == "stop" for chunk in chunks for piece in chunk["choices"]) == 3


def test_a_stop_string_is_not_shown_and_ends_the_sequence() -> None:
    engine = FakeEngine(says("one END two"))
    answer = chat(engine, stop=["END"])
    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("one END")
    assert engine.answers[0].cancelled


def test_half_a_stop_string_is_shown_once_it_is_no_stop_string() -> None:
    chunks = stream(CHAT, FakeEngine(says("one ENDE two EN")), stop="ENDING")
    assert text_of(chunks) == "one ENDE two EN"


def test_logprobs_have_bytes_and_alternatives() -> None:
    answer = chat(FakeEngine(says("é")), logprobs=True, top_logprobs=2)
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert first["bytes"] + second["bytes"] == list("é".encode())
    assert first["logprob"] == -0.5
    assert [entry["logprob"] for entry in first["top_logprobs"]] == [-0.5, -1.5]


def test_streamed_logprobs_are_the_whole_ones() -> None:
    engine = FakeEngine(says("añb END"))
    whole = chat(engine, logprobs=True, stop="END")["choices"][0]["logprobs"]["content"]
    chunks = stream(CHAT, engine, logprobs=True, stop="END")
    pieces = [piece["logprobs"] for chunk in chunks for piece in chunk["choices"]]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == whole
    assert bytes(byte for entry in whole for byte in entry["bytes"]) == "añb ".encode()


def test_developers_are_the_system_and_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]
    answer = chat(messages=[{"role": "developer", "content": parts}, *HELLO])
    assert answer["choices"][0]["message"]["content"] == "system: be kinduser: hello"


def test_the_model_may_be_left_out_when_there_is_one() -> None:
    assert chat()["model"] == chat(model="fake")["model"]


def test_a_template_that_refuses_is_told_as_it_refuses() -> None:
    response = post(CHAT, {"messages": [{"role": "user", "content": "refuse me"}]})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "template_error")
    assert "this conversation is refused" in error["message"]


def test_a_template_is_given_the_requests_keywords_and_none_of_ours() -> None:
    answer = chat(chat_template_kwargs={"enable_thinking": False})
    assert "'enable_thinking': False" in answer["choices"][0]["message"]["content"]
    response = post(CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": "x"}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs.messages"
