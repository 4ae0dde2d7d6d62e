"""Laws of the engine, with a model whose logits are a hash of the history."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.messages import Delta, Sampling, Submit
from engine.pace import PREFILL
from kvcache.pages import PAGE
from quant.errors import EngineError
from tests.engine.hash_model import VOCAB, HashModel, alone, collect, engine_of, finish_all, logits_after

GREEDY = Sampling(max_tokens=8, temperature=0)


def prompt_of(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB, length)]


def mixed(i: int) -> Submit:
    """Requests as different as parameters allow; lengths from one token to more than a prefill chunk."""
    sampling = Sampling(
        max_tokens=5 + 7 * (i % 5),
        temperature=(0, 1, 0.7, 1.3)[i % 4],
        top_k=(0, 5, 20)[i % 3],
        top_p=(1, 0.9)[i % 2],
        min_p=(0, 0.02)[i // 2 % 2],
        repetition_penalty=(1, 1.2)[i // 3 % 2],
        frequency_penalty=(0, 0.3)[i // 4 % 2],
        presence_penalty=(0, -0.2)[i // 5 % 2],
        logit_bias={i: 1.5} if i % 3 == 0 else {},
        seed=i * 2**60,
        logprobs=(None, 0, 3)[i % 3],
        stop_tokens=(7,) if i % 4 == 3 else (),
    )
    return Submit(i, prompt_of((1, 40, 300, 700, 32, 31, 33, 5)[i % 8] + i, seed=i), sampling)


def as_request_0(deltas: list[Delta]) -> list[Delta]:
    return [msgspec.structs.replace(delta, id=0) for delta in deltas]


ALONE = [alone(mixed(i).prompt, mixed(i).sampling) for i in range(16)]


@given(pages=st.integers(24, 200), max_batch=st.integers(1, 16), arrivals=st.lists(st.integers(0, 6), max_size=16))
@settings(max_examples=12, deadline=None)
def test_mixed_requests_at_once_get_what_each_gets_alone(pages: int, max_batch: int, arrivals: list[int]) -> None:
    """Whatever the pool's size (small ones put sequences back), the batch, and the steps between their arrivals."""
    engine, _ = engine_of(pages, max_batch, context=24 * PAGE)
    answers: dict[int, list[Delta]] = {}
    for i in range(16):
        engine.submit(mixed(i))
        for _ in range(arrivals[i] if i < len(arrivals) else 0):
            collect(engine.step(), answers)
            engine.check()
    finish_all(engine, answers)
    assert [as_request_0(answers[i]) for i in range(16)] == ALONE
    assert engine.cache.available == pages


def test_a_sequence_that_was_put_back_for_want_of_pages_goes_on_where_it_was() -> None:
    sampling = Sampling(max_tokens=100)
    engine, model = engine_of(pages=8)
    for i in range(3):
        engine.submit(Submit(i, prompt_of(40, i), sampling))
    answers: dict[int, list[Delta]] = {}
    finish_all(engine, answers)
    restarts = sum(int(past == 0) for batch in model.passes for past in batch.past)
    assert restarts > 3, "the pool was meant to be too small for three"
    for i in range(3):
        assert as_request_0(answers[i]) == alone(prompt_of(40, i), sampling)


def test_greedy_takes_the_argmax_of_what_the_model_says_of_the_history() -> None:
    tokens = prompt_of(50, seed=1)
    for delta in alone(list(tokens), GREEDY):
        (sampled,) = delta.tokens
        assert sampled.token == logits_after(tokens).argmax()
        tokens.append(sampled.token)


def test_an_answer_ends_at_max_tokens_and_at_the_context() -> None:
    by_request = alone(prompt_of(10, 2), Sampling(max_tokens=4))
    by_context = alone(prompt_of(60, 2), Sampling(max_tokens=1000), pages=2)
    assert (len(by_request), by_request[-1].finish) == (4, "length")
    assert (len(by_context), by_context[-1].finish) == (4, "length")
    assert all(delta.finish is None for delta in by_request[:-1])


def test_an_answer_ends_with_its_stop_token() -> None:
    prompt = prompt_of(10, 3)
    third = alone(prompt, GREEDY)[2].tokens[0].token
    stopped = alone(prompt, msgspec.structs.replace(GREEDY, stop_tokens=(third,)))
    assert (stopped[-1].tokens[0].token, stopped[-1].finish) == (third, "stop")
    assert len(stopped) <= 3


def test_cancelled_while_waiting_it_takes_part_in_no_pass() -> None:
    engine, model = engine_of(pages=8, max_batch=1)
    engine.submit(Submit(1, prompt_of(5, 1), GREEDY))
    engine.submit(Submit(2, [95] * 5, GREEDY))
    engine.step()
    engine.cancel(2)
    answers: dict[int, list[Delta]] = {}
    finish_all(engine, answers)
    assert 2 not in answers
    assert all(len(batch.past) == 1 for batch in model.passes)


@pytest.mark.parametrize("steps", [1, 5], ids=["in prefill", "in decode"])
def test_cancelled_while_running_its_pages_are_free_before_the_next_step(steps: int) -> None:
    engine, model = engine_of(pages=64)
    engine.submit(Submit(1, prompt_of(PREFILL + 50, 1), Sampling(max_tokens=1000)))
    for _ in range(steps):
        engine.step()
    assert engine.cache.available < 64
    engine.cancel(1)
    assert engine.cache.available == 64
    assert (engine.busy, engine.step()) == (False, ())
    assert len(model.passes) == steps


def test_a_cancel_does_not_touch_the_others() -> None:
    sampling = Sampling(max_tokens=40, seed=5)
    engine, _ = engine_of(pages=16)
    for i in range(4):
        engine.submit(Submit(i, prompt_of(60, i), sampling))
    answers: dict[int, list[Delta]] = {}
    for cancelled in (3, 1):
        for _ in range(4):
            collect(engine.step(), answers)
        engine.cancel(cancelled)
        engine.check()
    finish_all(engine, answers)
    for i in (0, 2):
        assert as_request_0(answers[i]) == alone(prompt_of(60, i), sampling)


def test_a_cancel_of_what_is_over_or_was_never_there_is_nothing() -> None:
    engine, _ = engine_of(pages=4)
    engine.submit(Submit(1, [1], GREEDY))
    finish_all(engine, {})
    engine.cancel(1)
    engine.cancel(99)
    engine.check()


def test_a_long_prompt_holds_up_nobody_who_decodes() -> None:
    engine, model = engine_of(pages=200, chunk=128)
    engine.submit(Submit(1, [1, 2, 3], Sampling(max_tokens=1000)))
    engine.step()
    engine.submit(Submit(2, prompt_of(3000, 1), GREEDY))
    for _ in range(10):
        assert [delta.id for delta in engine.step()] == [1]
    assert max(len(batch.tokens) for batch in model.passes) <= 128 + 1


def test_a_long_prompt_holds_up_no_short_one() -> None:
    engine, _ = engine_of(pages=200)
    engine.submit(Submit(1, prompt_of(5000, 1), GREEDY))
    engine.submit(Submit(2, prompt_of(20, 2), GREEDY))
    assert [delta.id for delta in engine.step()] == [2]


@pytest.mark.parametrize(
    ("prompt", "sampling", "fault"),
    [
        ([], GREEDY, "this one has 0"),
        ([1] * (4 * PAGE), GREEDY, "this one has 128"),
        ([1, VOCAB], GREEDY, "the request has 96"),
        ([-1], GREEDY, "the request has -1"),
        ([1], Sampling(max_tokens=0), "0 were asked for"),
        ([1], Sampling(max_tokens=1, logit_bias={VOCAB: 1.0}), "the request has 96"),
    ],
)
def test_what_could_never_run_is_refused(prompt: list[int], sampling: Sampling, fault: str) -> None:
    engine, _ = engine_of(pages=4)
    with pytest.raises(EngineError, match=fault):
        engine.submit(Submit(1, prompt, sampling))
    assert not engine.busy


def test_logits_that_are_not_numbers_end_their_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sane = HashModel._logits
    monkeypatch.setattr(
        HashModel,
        "_logits",
        lambda self, batch, row: sane(self, batch, row) * (np.nan if batch.tokens[row] == 13 else 1),
    )
    engine, _ = engine_of(pages=8)
    engine.submit(Submit(1, [13], GREEDY))
    engine.submit(Submit(2, [14], msgspec.structs.replace(GREEDY, max_tokens=1)))
    answers: dict[int, list[Delta]] = {}
    finish_all(engine, answers)
    assert answers[1] == [Delta(1, (), fault="the model computed something that is not a number")]
    assert answers[2][-1].finish == "length"
    assert engine.cache.available == 8


@given(
    pages=st.integers(24, 60),
    turns=st.lists(st.one_of(st.just(None), st.integers(0, 15)), max_size=60),
)
@settings(max_examples=15, deadline=None)
def test_whoever_is_cancelled_whenever_the_rest_get_what_they_get_alone(pages: int, turns: list[int | None]) -> None:
    """A turn is a step, or a cancel of one of the sixteen, in whatever state it is."""
    engine, _ = engine_of(pages, max_batch=6, context=24 * PAGE)
    answers: dict[int, list[Delta]] = {}
    for i in range(16):
        engine.submit(mixed(i))
    for turn in turns:
        if turn is None:
            collect(engine.step(), answers)
        else:
            engine.cancel(turn)
        engine.check()
    finish_all(engine, answers)
    for i in range(16):
        got = as_request_0(answers.get(i, []))
        assert got == ALONE[i] if i not in turns else got == ALONE[i][: len(got)]
    assert engine.cache.available == pages
