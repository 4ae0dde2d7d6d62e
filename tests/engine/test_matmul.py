"""Matmul: equal to its stated arithmetic in every bit, near the exact product, and the same however the work is cut."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine import _native
from quant.formats import FORMATS
from tests.engine import matmul_emulation as emulated
from tests.engine.instruction_sets import printed_by_each
from tests.engine.matmul_digests import activations
from tests.engine.weight_cases import F32, KINDS, Kind, Weights, weights

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
DENSE = ("f32", "f16", "bf16")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")


def projected(x: F32, panels: _native.Panels) -> F32:
    return np.array(_native.project(mx.array(x), [panels], [None])[0])


def width(kind: Kind) -> int:
    """Not a multiple of 256 where the format allows it."""
    return 896 if 896 % kind.group == 0 else 768


def step_error(x: F32, w: Weights) -> npt.NDArray[np.float64]:
    """The most that rounding activations to int8 can change an output: half a step of each block times its weights."""
    if w.kind.name in DENSE:
        return np.zeros((len(x), len(w.decoded)))
    block = 128 if w.kind.name in K_QUANTS else 32
    steps = np.abs(x.reshape(len(x), -1, block)).max(-1) / 127
    sizes = np.abs(w.decoded.astype(np.float64)).reshape(len(w.decoded), -1, block).sum(-1)
    bound: npt.NDArray[np.float64] = 0.5 * steps @ sizes.T
    return bound


@every_kind
def test_is_near_the_exact_product(kind: Kind) -> None:
    w = weights(kind, 37, width(kind))
    x = np.random.default_rng(1).standard_normal((40, width(kind)), np.float32)
    panels = w.pack()
    for rows in (1, 2, 3, 5, 7, 8, 9, 16, 23, 40):
        want = x[:rows].astype(np.float64) @ w.decoded.T.astype(np.float64)
        # A chain has a rounding for each value (dense), or at most four for each 32, none above 2^-24 of the sum of its
        # parts. Minima and biases are parts of their own: codes are random and reach both ends of their range, so that
        # each part is at most about twice the row's largest weight.
        chain = 4 + x.shape[1] // (1 if kind.name in DENSE else 8)
        parts = np.abs(x[:rows]).astype(np.float64).sum(1)[:, None] * 4 * np.abs(w.decoded).max(1)
        rounding = 2**-24 * chain * parts
        error = np.abs(projected(x[:rows], panels) - want)
        assert (error <= step_error(x[:rows], w) * (1 + 2**-10) + rounding).all()


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Kind("f32"), emulated.dense),
        (Kind("f16"), emulated.dense),
        (Kind("q8_0"), emulated.q8_0),
        (Kind("q4_k"), emulated.q4_k),
        (Kind("affine4_64", "f32"), emulated.affine4),
    ],
    ids=lambda value: str(value) if isinstance(value, Kind) else value.__name__,
)
def test_equals_the_stated_arithmetic_in_every_bit(kind: Kind, law: Callable[[F32, Weights], F32]) -> None:
    w = weights(kind, 37, width(kind))
    x = np.random.default_rng(2).standard_normal((11, width(kind)), np.float32)
    np.testing.assert_array_equal(projected(x, w.pack()), law(x, w))


@every_kind
def test_a_row_has_the_same_bits_alone_and_in_a_batch(kind: Kind) -> None:
    panels = weights(kind, 37, width(kind)).pack()
    x = activations(40, width(kind))
    together = projected(x, panels).view(np.uint32)
    for rows in (1, 3, 4, 6, 7, 8, 13):
        for start in range(0, 40, rows):
            np.testing.assert_array_equal(
                projected(x[start : start + rows], panels).view(np.uint32), together[start : start + rows]
            )


@pytest.mark.parametrize("kind", [Kind("q4_k"), Kind("q8_0"), Kind("bf16")], ids=str)
def test_threads_and_blocks_of_rows_do_not_change_a_bit(kind: Kind) -> None:
    panels = weights(kind, 300, 2048).pack()
    x = activations(600, 2048)  # more than one slab, and several blocks in a slab
    before, got = _native.threads(), []
    try:
        for threads in (1, 2, 3):
            _native.set_threads(threads)
            got.append(projected(x, panels).view(np.uint32))
    finally:
        _native.set_threads(before)
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[0][-1:], projected(x[-1:], panels).view(np.uint32))


def test_every_instruction_set_gives_the_same_bits() -> None:
    first, *others = printed_by_each("tests.engine.matmul_digests")
    for other in others:
        assert other == first


@pytest.mark.parametrize("kind", [Kind("q4_k"), Kind("q8_0"), Kind("f32")], ids=str)
def test_a_row_that_is_not_finite_spoils_no_other(kind: Kind) -> None:
    panels = weights(kind, 37, 768).pack()
    x = activations(9, 768)
    spoiled = x.copy()
    spoiled[4, 5], spoiled[6, 700] = np.inf, np.nan
    got, want = projected(spoiled, panels), projected(x, panels)
    others = [0, 1, 2, 3, 5, 7, 8]
    np.testing.assert_array_equal(got[others].view(np.uint32), want[others].view(np.uint32))
    assert not np.isfinite(got[[4, 6]]).any()


def test_one_pass_gives_every_projection_of_mixed_formats() -> None:
    made = [weights(Kind("q4_k"), 70, 512), weights(Kind("q8_0"), 33, 512), weights(Kind("f16"), 5, 512)]
    panels = [w.pack() for w in made]
    x = np.random.default_rng(3).standard_normal((10, 512), np.float32)
    biases = [mx.arange(70, dtype=mx.float32), None, mx.ones(5)]
    got = _native.project(mx.array(x), panels, biases)
    for y, one, bias in zip(got, panels, biases, strict=True):
        want = projected(x, one) + (0 if bias is None else np.array(bias))
        np.testing.assert_array_equal(np.array(y), want)


def test_add_projected_adds_the_bias_and_then_the_residual() -> None:
    panels = weights(Kind("q6_k"), 45, 512).pack()
    rng = np.random.default_rng(4)
    x, residual = rng.standard_normal((9, 512), np.float32), rng.standard_normal((9, 45), np.float32)
    bias = rng.standard_normal(45, np.float32)
    got = _native.add_projected(mx.array(residual), mx.array(x), panels, mx.array(bias))
    np.testing.assert_array_equal(np.array(got), projected(x, panels) + bias + residual)


@pytest.mark.parametrize("rows", [1, 8, 70])
def test_the_gated_mlp_is_its_three_projections(rows: int) -> None:
    gate, up, down = (
        weights(Kind("q4_k"), *shape, seed=i) for i, shape in enumerate([(512, 256), (512, 256), (256, 512)])
    )
    panels = [w.pack() for w in (gate, up, down)]
    rng = np.random.default_rng(5)
    # Small enough that exp(-gate) stays far from overflow.
    x = rng.standard_normal((rows, 256), np.float32) * np.float32(0.02)
    got = np.array(_native.add_gated_mlp(mx.array(x), panels, [None] * 3))
    g, u = projected(x, panels[0]).astype(np.float64), projected(x, panels[1]).astype(np.float64)
    hidden = (g / (1 + np.exp(-g)) * u).astype(np.float32)
    # The hidden activations may differ by roundings of the gate, each of which may move an int8 by one step.
    steps = np.abs(hidden.reshape(rows, -1, 128)).max(-1) / 127
    sizes = np.abs(down.decoded.astype(np.float64)).reshape(256, -1, 128).sum(-1)
    assert (np.abs(got - (projected(hidden, panels[2]) + x)) <= steps @ sizes.T * 2**-4).all()


def test_the_gated_mlp_gives_a_row_the_same_bits_in_every_block_of_rows() -> None:
    # 16 MB of hidden activations hold 128 rows of this width, so 300 rows take three blocks.
    shapes = [(16384, 256), (16384, 256), (256, 16384)]
    panels = [weights(Kind("q4_0"), *shape, seed=i).pack() for i, shape in enumerate(shapes)]
    x = mx.array(np.random.default_rng(6).standard_normal((300, 256), np.float32))
    got = np.array(_native.add_gated_mlp(x, panels, [None] * 3))
    for row in (0, 127, 128, 299):
        alone = _native.add_gated_mlp(x[row : row + 1], panels, [None] * 3)
        np.testing.assert_array_equal(np.array(alone)[0], got[row])


def test_inputs_may_be_strided_and_of_another_type() -> None:
    panels = weights(Kind("q4_0"), 20, 64).pack()
    x = np.random.default_rng(7).standard_normal((64, 12), np.float32).astype(np.float16)
    got = _native.project(mx.array(x).T[::2], [panels], [None])[0]
    np.testing.assert_array_equal(np.array(got), projected(x.T[::2].astype(np.float32), panels))


def test_shapes_that_do_not_fit_are_refused() -> None:
    panels = weights(Kind("q4_0"), 20, 64).pack()
    with pytest.raises(ValueError, match="x is"):
        _native.project(mx.zeros((2, 32)), [panels], [None])
    with pytest.raises(ValueError, match="bias"):
        _native.project(mx.zeros((2, 64)), [panels], [mx.zeros(19)])
    with pytest.raises(ValueError, match="residual"):
        _native.add_projected(mx.zeros((2, 21)), mx.zeros((2, 64)), panels, None)
    with pytest.raises(ValueError, match="hidden"):
        _native.add_gated_mlp(mx.zeros((2, 64)), [panels] * 3, [None] * 3)
    with pytest.raises(ValueError, match="norm"):
        _native.project(mx.zeros((2, 64)), [panels], [None], mx.ones(63))


@pytest.mark.parametrize("rows", [1, 20])
def test_a_norm_on_the_way_in_is_the_norm_before(rows: int) -> None:
    panels = weights(Kind("q5_k"), 45, 512).pack()
    rng = np.random.default_rng(8)
    x, norm = mx.array(rng.standard_normal((rows, 512), np.float32)), mx.array(rng.standard_normal(512, np.float32))
    got = _native.project(x, [panels], [None], norm, 1e-5)[0]
    np.testing.assert_array_equal(np.array(got), projected(np.array(_native.norm(x, norm, 1e-5)), panels))


def test_every_format_of_the_table_has_a_case() -> None:
    assert {kind.name for kind in KINDS} >= set(FORMATS)
