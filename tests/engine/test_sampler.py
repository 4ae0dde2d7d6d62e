"""Laws of the sampler: a token is a function of its request, and its distribution is the one that was asked for."""

import math
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine import exact
from engine.draw import MARGIN, Floats, Shape, largest, place
from engine.messages import Sampling
from engine.sampler import Logits, choose, uniform
from tests.engine.instruction_sets import printed_by_each

VOCAB = 64
rows = arrays(np.float32, VOCAB, elements=st.floats(-20, 20, width=32))
shapes = st.builds(
    Shape, st.floats(0.05, 5), st.one_of(st.just(0.0), st.floats(0.001, 1)), st.one_of(st.just(1.0), st.floats(0, 1))
)


def row_of(seed: int, vocab: int = VOCAB) -> Logits:
    return (np.random.default_rng(seed).standard_normal(vocab) * 4).astype(np.float32)


def wanted(row: Logits, s: Sampling) -> Floats:
    """Probabilities by the definition, over a fully sorted vocabulary: the slow twin."""
    order = np.argsort(-row.astype(np.float64), kind="stable")
    if s.top_k:
        order = order[: s.top_k]
    p = np.exp((row[order].astype(np.float64) - row.max()) / s.temperature)
    p = np.where(p >= s.min_p, p, 0)
    before = np.concatenate([[0], (p / p.sum()).cumsum()[:-1]])
    p = np.where(before < s.top_p, p, 0)
    whole = np.zeros(len(row))
    whole[order] = p / p.sum()
    return whole


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=1),
        Sampling(max_tokens=1, temperature=0.6),
        Sampling(max_tokens=1, temperature=2.5),
        Sampling(max_tokens=1, top_k=5),
        Sampling(max_tokens=1, top_p=0.7),
        Sampling(max_tokens=1, min_p=0.1),
        Sampling(max_tokens=1, temperature=1.5, top_k=20, top_p=0.8, min_p=0.01),
    ],
)
def test_tokens_come_as_often_as_they_should(sampling: Sampling) -> None:
    """Every count within 5 deviations of its binomial: a false alarm in a million counts, and the seeds are fixed."""
    draws = 4000
    row = row_of(1)
    p = wanted(row, sampling)
    tokens = [choose(row, sampling, [0] * (1 + i), 1).token for i in range(draws)]
    counts = np.bincount(tokens, minlength=VOCAB)
    assert not counts[p == 0].any(), "a token that was cut off was drawn"
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 1).all()


def test_a_large_vocabulary_is_drawn_from_as_by_the_definition() -> None:
    """The inverse of the summed probabilities, in order of id without top-p and of likelihood with it."""
    row = row_of(2, vocab=50_000)
    plain, cut = Sampling(max_tokens=1), Sampling(max_tokens=1, top_p=0.9)
    order = np.argsort(-row, kind="stable")
    for index in range(50):
        chance = uniform(0, index)
        tokens = [0] * index
        by_id = np.searchsorted(wanted(row, plain).cumsum(), chance, side="right")
        by_rank = order[np.searchsorted(wanted(row, cut)[order].cumsum(), chance, side="right")]
        assert choose(row, plain, tokens, 0).token == by_id
        assert choose(row, cut, tokens, 0).token == by_rank


@given(row=rows, shape=shapes, chance=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_token_does_not_depend_on_the_last_bits_of_exp(row: Logits, shape: Shape, chance: float, seed: int) -> None:
    """Machines' exps differ by a few ulp; here by up to 8."""

    def rough(x: Floats) -> Floats:
        ulps = np.random.default_rng(seed).integers(-8, 9, len(x))
        off: Floats = np.exp(x) * (1 + ulps * 2.0**-52)
        return off

    assert place(row, shape, chance) == place(row, shape, chance, rough) == place(row, shape, chance, exact.exp)


@pytest.mark.parametrize("shape", [Shape(1.0, 0.0, 1.0), Shape(0.7, 0.02, 1.0), Shape(1.3, 0.0, 0.9)])
def test_a_large_vocabulary_is_weighed_alike_by_kernels_and_by_the_exact_exp(shape: Shape) -> None:
    row = row_of(3, vocab=20_000)
    for index in range(20):
        for logits in (row, row.astype(np.float64)):
            assert place(logits, shape, uniform(1, index)) == place(logits, shape, uniform(1, index), exact.exp)


def test_every_instruction_set_weighs_to_rounding() -> None:
    """A thousandth of what a draw allows for."""
    assert max(float(error) for error in printed_by_each("tests.engine.weigh_errors")) <= MARGIN / 1000


def test_a_choice_on_the_edge_is_the_exact_one() -> None:
    """Two equal tokens and a chance of one half: nothing but the rule decides."""
    row = np.zeros(2, np.float32)

    def rough(x: Floats) -> Floats:
        return np.array([1 + 2.0**-50, 1.0])[: len(x)]

    assert place(row, Shape(1.0, 0.0, 1.0), 0.5, rough) == place(row, Shape(1.0, 0.0, 1.0), 0.5) == 1


@given(row=rows, shape=shapes, chance=st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_nothing_that_is_cut_off_is_drawn(row: Logits, shape: Shape, chance: float) -> None:
    masked = np.where(np.arange(VOCAB) % 3 == 0, row, -np.inf).astype(np.float32)
    assert place(masked, shape, chance) % 3 == 0


@given(row=rows, count=st.integers(1, VOCAB + 5))
@settings(deadline=None)
def test_the_largest_are_those_of_a_stable_sort(row: Logits, count: int) -> None:
    np.testing.assert_array_equal(largest(row, count), np.argsort(-row, kind="stable")[:count])


def test_the_largest_of_many_are_those_of_a_stable_sort() -> None:
    row = np.round(row_of(5, vocab=30_000))  # full of equals
    for count in (1, 40, 400, 4000):
        np.testing.assert_array_equal(largest(row, count), np.argsort(-row, kind="stable")[:count])


def test_greedy_takes_the_first_of_the_highest() -> None:
    row = np.array([1, 3, 3, 2], np.float32)
    assert choose(row, Sampling(max_tokens=1, temperature=0), [0], 1).token == 1


def test_a_temperature_next_to_zero_is_greedy() -> None:
    row = row_of(3)
    for temperature in (1e-3, 1e-45, 5e-324):
        assert choose(row, Sampling(max_tokens=1, temperature=temperature), [0], 1).token == row.argmax()


def test_a_number_is_a_function_of_seed_and_index() -> None:
    assert uniform(5, 7) == uniform(5, 7)
    numbers = {uniform(seed, index) for seed in (0, 1, 2**63, 2**64 - 1, -2) for index in range(100)}
    assert len(numbers) == 400 + 100, "seeds and indices have streams of their own"
    assert min(numbers) >= 0
    assert max(numbers) < 1


def greedy(row: npt.ArrayLike, tokens: list[int], prompt: int, **parameters: float) -> int:
    sampling = Sampling(max_tokens=1, temperature=0, **parameters)  # type: ignore[arg-type]
    return choose(np.asarray(row, np.float32), sampling, tokens, prompt).token


def test_repetition_divides_what_is_above_zero_and_multiplies_what_is_below() -> None:
    assert greedy([2.0, 1.5, 0], [0], 1, repetition_penalty=1.3) == 0
    assert greedy([2.0, 1.5, 0], [0], 1, repetition_penalty=1.4) == 1
    assert greedy([-1.0, -1.25, -9], [0], 1, repetition_penalty=1.2) == 0
    assert greedy([-1.0, -1.25, -9], [0], 1, repetition_penalty=1.3) == 1


def test_frequency_counts_the_answer_and_presence_asks_whether_it_is_there() -> None:
    row = [2.0, 1.0]
    assert greedy(row, [0, 0, 0, 0], 2, frequency_penalty=0.4) == 0
    assert greedy(row, [0, 0, 0, 0], 2, frequency_penalty=0.6) == 1
    assert greedy(row, [0, 0, 0, 0], 2, presence_penalty=0.9) == 0
    assert greedy(row, [0, 0, 0, 0], 2, presence_penalty=1.1) == 1
    assert greedy(row, [0, 0, 0, 0], 4, frequency_penalty=2, presence_penalty=2) == 0, "a prompt is no answer"


def test_a_bias_is_added_to_its_logit() -> None:
    row = np.array([2, 1], np.float32)
    for bias, token in ((0.9, 0), (1.1, 1)):
        assert choose(row, Sampling(max_tokens=1, temperature=0, logit_bias={1: bias}), [0], 1).token == token


def test_logprobs_are_the_models_own_whatever_was_asked_for() -> None:
    """Against a sum in extended precision; 1e-12 is 30 roundings of a number below 64 in float64."""
    row = row_of(4)
    sampling = Sampling(max_tokens=1, temperature=0, logit_bias={3: 100.0}, logprobs=5)
    sampled = choose(row, sampling, [1, 2], 1)
    theirs = row.astype(np.float64) - math.log(math.fsum(math.exp(x) for x in row.tolist()))
    assert sampled.token == 3
    assert sampled.logprob == pytest.approx(theirs[3], abs=1e-12)
    assert [top.token for top in sampled.top] == np.argsort(-row, kind="stable")[:5].tolist()
    for top in sampled.top:
        assert top.logprob == pytest.approx(theirs[top.token], abs=1e-12)


def test_no_logprobs_unless_asked_and_none_beside_the_token_for_zero() -> None:
    row = row_of(4)
    assert choose(row, Sampling(max_tokens=1), [0], 1).logprob is None
    of_zero = choose(row, Sampling(max_tokens=1, logprobs=0), [0], 1)
    assert of_zero.logprob is not None
    assert of_zero.top == ()


@given(st.lists(st.floats(-700, 0), min_size=1, max_size=50))
@settings(deadline=None)
def test_exp_is_within_2_ulp(xs: list[float]) -> None:
    context = Context(prec=40)
    for x, y in zip(xs, exact.exp(np.array(xs)), strict=True):
        true = context.exp(Decimal(x))
        assert abs(Decimal(float(y)) - true) <= 2 * Decimal(math.ulp(float(true)))


def test_exp_of_next_to_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(exact.exp(np.array([-700.1, -1e9, -np.inf, 0.0, -0.0])), [0, 0, 0, 1, 1])


def test_log_is_rounded_right() -> None:
    assert exact.log(1.0) == 0
    assert exact.log(1e-3) == float(Context(prec=60).ln(Decimal.from_float(1e-3)))
