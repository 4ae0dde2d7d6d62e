"""Paged attention: equal to float64 arithmetic within rounding, and the same bits however the work is cut."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine import _native
from tests.engine.attention_cases import CASES, EPS, Case, Floats, Run
from tests.engine.instruction_sets import printed_by_each
from tests.engine.kv_emulation import asked, stored

Doubles = npt.NDArray[np.float64]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def normed(x: Doubles, weight: npt.NDArray[np.float32]) -> Doubles:
    scale: Doubles = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    return x * scale * weight


def turned(run: Run, x: Doubles) -> Doubles:
    """Rope of x (T, H, Dh) at positions 0, 1, ..."""
    c, half = run.case, run.case.rope_dims // 2
    cos, sin = run.rope[: len(x), :half][:, None], run.rope[: len(x), half:][:, None]
    first = np.arange(half) * 2 if c.interleaved else np.arange(half)
    second = first + (1 if c.interleaved else half)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def exact(run: Run, sequence: int) -> Doubles:
    """Attention of every row of a sequence in float64, on keys and values as the pages store them."""
    c = run.case
    n = len(run.q[sequence])

    def heads(parts: list[Floats], count: int) -> Doubles:
        return parts[sequence].reshape(n, count, c.head_dim).astype(np.float64)

    q, k, v = heads(run.q, c.heads), heads(run.k, c.kv_heads), heads(run.v, c.kv_heads)
    if run.norms:
        q, k = normed(q, run.norms[0]), normed(k, run.norms[1])
    q = asked(turned(run, q), c.dtype)
    k, v = (np.repeat(stored(x, c.dtype), c.heads // c.kv_heads, axis=1) for x in (turned(run, k), v))
    scores = np.einsum("qhd,khd->hqk", q, k) * c.head_dim**-0.5
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    seen = (distance >= 0) & (distance < (c.window or n))
    weights = np.exp(np.where(seen, scores, -np.inf) - np.where(seen, scores, -np.inf).max(-1, keepdims=True))
    out: Doubles = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(n, -1)
    return out


@every_case
def test_equals_exact_arithmetic_to_rounding(case: Case) -> None:
    run = Run(case)
    got = run.together()
    want = np.concatenate([exact(run, i)[past:] for i, (past, _) in enumerate(case.sequences)])
    # A score is a chain of Dh roundings of terms near 1, and exp turns its absolute error into a relative one. With
    # 16-bit pages a key at the edge of two stored values may also fall to the other side: one unit of it. So may the
    # code of a query, which moves a score by 2^-15 of its largest number times a key. Codes of few bits have edges
    # too few to be met.
    unit = {mx.float32: 2**-24, mx.float16: 2**-11, mx.bfloat16: 2**-8}.get(case.dtype, 2**-11)
    np.testing.assert_allclose(got, want, rtol=0, atol=case.head_dim * 2**-24 * 4 + unit / 8)


@every_case
def test_a_row_has_the_same_bits_in_a_batch_and_alone(case: Case) -> None:
    np.testing.assert_array_equal(Run(case).together(), Run(case).token_by_token())


def test_thread_counts_give_the_same_bits() -> None:
    results = []
    for threads in (1, 2, 3, 1):
        _native.set_threads(threads)
        results.append([Run(case).together().tobytes() for case in CASES.values()])
    assert all(result == results[0] for result in results)


def test_instruction_sets_give_the_same_bits() -> None:
    first, *others = printed_by_each("tests.engine.attention_cases")
    assert first
    assert others == [first] * len(others)


def test_pages_are_written_in_place() -> None:
    run = Run(CASES["width 256"])
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    run.attend([(1, 0, 1)])
    assert mx.get_peak_memory() - before < run.pages.nbytes / 4
    assert not np.isnan(np.array(run.pages.astype(mx.float32))).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32, mx.int8, mx.uint8])
@pytest.mark.parametrize(("pages", "elements"), [(3, 32 * 64 * 2), (600, 8 * 32 * 64 * 2), (1, 2)])
def test_pages_begin_on_a_page_of_the_system(pages: int, elements: int, dtype: mx.Dtype) -> None:
    """No load of theirs takes two cache lines; and they are all there."""
    made = _native.unwritten_pages(pages, elements, dtype)
    seen = np.array(made, copy=False)
    assert seen.ctypes.data % 4096 == 0
    assert seen.shape == (pages, elements)
    seen[:] = 3
    assert (np.array(made) == 3).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_key_that_is_no_number_is_not_taken_for_an_answer(wrong: float) -> None:
    """It comes out as NaN wherever it is seen, so that it reaches the logits and is told."""
    run = Run(CASES["grouped, interleaved, float32"])
    run.k[1][17] = wrong
    run.attend([(1, 0, 17), (0, 0, 5)])
    seen = run.attend([(1, 17, 250)])
    assert np.isnan(seen).all()
    assert np.isfinite(run.attend([(0, 4, 1)])).all()


def test_what_does_not_fit_together_is_refused() -> None:
    run = Run(CASES["width 256"])
    run.tables = run.tables + 1000
    with pytest.raises(ValueError, match="page lies outside"):
        run.attend([(0, 0, 1)])
    with pytest.raises(ValueError, match="outgrows"):
        Run(CASES["width 256"]).attend([(0, 10_000, 1)])
