"""Norms, gates and rope on the Apple GPU, run on the host: float64 within its bound, the same bits in any batch."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.metal import layer
from engine.metal.attention import PAGES, Call, roomy
from engine.metal.attention_numbers import Array, coded, narrowed, widened
from engine.metal.attention_reference import Reference
from engine.metal.layer import (
    Turns,
    add_norm_call,
    gate_call,
    norm_call,
    rope_call,
    supports_width,
    written,
)
from engine.metal.layer_reference import gated, normed, ready
from models.rope import Rope, rope_table
from tests.metal_host.layer_cases import fusing, ran
from tests.metal_host.run import Order

EPS = np.asarray(1e-5, np.float32)
BACKWARDS = Order(reverse=True, sums=2)

# Each instance of a kernel is compiled, so that a case has to serve several laws.
TURNS = {
    "interleaved": (Turns(3, 2, 64, 64, interleaved=True, head_norms=False), "float16", "float16"),
    "halves, head norms": (Turns(2, 1, 128, 128, interleaved=False, head_norms=True), "float32", "float32"),
    "a part of 80 turns": (Turns(2, 1, 80, 32, interleaved=False, head_norms=False), "float32", "float32"),
    "256 wide": (Turns(1, 1, 256, 64, interleaved=True, head_norms=True), "bfloat16", "bfloat16"),
}
every_turn = pytest.mark.parametrize(("turns", "dtype", "pages"), TURNS.values(), ids=TURNS.keys())
dtypes = pytest.mark.parametrize(("x", "y"), [("float32", "float16"), ("bfloat16", "float32")])


def normal(seed: int, *shape: int, dtype: str = "float32") -> Array:
    return narrowed(np.random.default_rng(seed).standard_normal(shape), dtype)


def require_within(got: Array, want: Reference, dtype: str) -> None:
    np.testing.assert_array_less(np.abs(widened(got, dtype) - want.exact), want.bound)


class Prepared:
    """Rows of q, k and v at scattered positions."""

    def __init__(self, turns: Turns, dtype: str, rows: int = 5) -> None:
        self.turns, self.dtype = turns, dtype
        dim = turns.head_dim
        self.q = normal(1, rows, turns.heads * dim, dtype=dtype)
        self.k, self.v = (normal(seed, rows, turns.kv_heads * dim, dtype=dtype) for seed in (2, 3))
        self.positions = np.array([0, 1, 1000, 77, 3] * rows, np.int32)[:rows]
        self.table = rope_table(Rope(10_000.0, turns.rope_dims, turns.interleaved), 1001)
        self.norms = normal(4, dim), normal(5, dim)

    def run(self, queries: str, pages: str, rows: slice = slice(None), order: Order = Order()) -> list[Array]:  # noqa: B008
        inputs = {
            "q": self.q[rows],
            "k": self.k[rows],
            "v": self.v[rows],
            "turns": self.table,
            "positions": roomy(self.positions[rows]),
            "q_norm": self.norms[0],
            "k_norm": self.norms[1],
            "eps": EPS,
        }
        return ran(rope_call(self.turns, len(inputs["q"]), self.dtype, queries, PAGES[pages]), inputs, order)


@every_turn
def test_queries_and_pages_are_exact_within_the_bound(turns: Turns, dtype: str, pages: str) -> None:
    here = Prepared(turns, dtype)
    got = here.run(dtype, pages)
    q, k, v = (widened(x, dtype) for x in (here.q, here.k, here.v))
    norms = (here.norms[0].astype(np.float64), here.norms[1].astype(np.float64))
    table = here.table.astype(np.float64)
    want = ready(turns, q, k, v, table, here.positions, norms, float(EPS), dtype, pages)
    require_within(got[0], want.queries, dtype)
    require_within(got[1], want.kv, pages)


@every_turn
def test_a_row_of_q_k_and_v_has_the_same_bits_alone(turns: Turns, dtype: str, pages: str) -> None:
    here = Prepared(turns, dtype)
    together = here.run(dtype, pages, order=BACKWARDS)
    for row in range(len(here.q)):
        for alone, all_rows in zip(here.run(dtype, pages, slice(row, row + 1)), together, strict=True):
            np.testing.assert_array_equal(alone[0], all_rows[row])


@pytest.mark.parametrize("pages", ["q8", "q4"])
@pytest.mark.parametrize("name", ["a part of 80 turns", "halves, head norms"])
def test_quantised_pages_hold_the_codes_of_what_wide_ones_hold(name: str, pages: str) -> None:
    here = Prepared(TURNS[name][0], "float32")
    here.v[0] *= np.float32(1e-35)  # too small to be coded
    here.v[1, 5], here.v[2, 3], here.k[3, 40] = np.nan, np.inf, -np.inf
    here.v[4, :32] = 1  # equals largest with both signs
    here.v[4, 9] = -1
    queries, codes = here.run("float32", pages)
    wide_queries, wide = here.run("float32", "float32")
    np.testing.assert_array_equal(queries, wide_queries)
    np.testing.assert_array_equal(codes, coded(wide, PAGES[pages]))


@dtypes
def test_norms_are_exact_within_the_bound(x: str, y: str) -> None:
    for width in (64, 1100):
        rows, weight = normal(1, 3, width, dtype=x), normal(2, width)
        got = ran(norm_call(3, width, x, y), {"x": rows, "weight": weight, "eps": EPS})[0]
        require_within(got, normed(widened(rows, x), weight.astype(np.float64), float(EPS), y), y)
        alone = {"x": rows[2:], "weight": weight, "eps": EPS}
        np.testing.assert_array_equal(ran(norm_call(1, width, x, y), alone, BACKWARDS)[0][0], got[2])


@dtypes
def test_a_residual_is_added_and_normed_at_once(x: str, y: str) -> None:
    rows, added, weight = normal(1, 3, 1100), normal(2, 3, 1100, dtype=x), normal(3, 1100)
    inputs = {"x": rows, "added": added, "weight": weight, "eps": EPS}
    total, got = ran(add_norm_call(3, 1100, x, y), inputs)
    np.testing.assert_array_equal(total, rows + widened(added, x).astype(np.float32))
    require_within(got, normed(total.astype(np.float64), weight.astype(np.float64), float(EPS), y), y)
    for row in range(3):
        alone = {**inputs, "x": rows[row : row + 1], "added": added[row : row + 1]}
        np.testing.assert_array_equal(ran(add_norm_call(1, 1100, x, y), alone, BACKWARDS)[1][0], got[row])


@dtypes
def test_gates_are_exact_within_the_bound(x: str, y: str) -> None:
    gate, up = narrowed(np.linspace(-95, 95, 4 * 132).reshape(4, 132), x), normal(1, 4, 132, dtype=x)
    got = ran(gate_call(4, 132, x, y), {"gate": gate, "up": up})[0]
    require_within(got, gated(widened(gate, x), widened(up, x), y), y)
    alone = ran(gate_call(1, 132, x, y), {"gate": gate[2:3], "up": up[2:3]}, BACKWARDS)[0]
    np.testing.assert_array_equal(alone[0], got[2])


def test_a_compiler_that_fuses_products_and_sums_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that does not obey the word against it."""
    fused = Order(contract=True)
    x, weight = normal(1, 1, 64), normal(2, 64)
    inputs = {"x": x, "added": weight[None], "weight": weight, "eps": EPS}
    call = add_norm_call(1, 64, "float32", "float16")
    np.testing.assert_array_equal(
        ran(replace(call, kernel=fusing(call.kernel)), inputs, fused)[1], ran(call, inputs)[1]
    )
    here = Prepared(TURNS["halves, head norms"][0], "float32")
    wanted = {pages: here.run("float32", pages) for pages in ("float32", "q4")}
    monkeypatch.setattr(layer, "ROPE", fusing(layer.ROPE))
    for pages, want in wanted.items():
        for got, rows in zip(here.run("float32", pages, order=fused), want, strict=True):
            np.testing.assert_array_equal(got, rows)


def test_what_is_no_number_stays_visible() -> None:
    gate, up = np.zeros((1, 8), np.float32), np.ones((1, 8), np.float32)
    gate[0, 3], up[0, 5] = np.nan, np.inf
    gate[0, 5] = 1
    got = ran(gate_call(1, 8, "float32", "float16"), {"gate": gate, "up": up})[0]
    assert (np.isfinite(got[0]) == [True, True, True, False, True, False, True, True]).all()


def test_threadgroups_are_whole() -> None:
    calls: list[Call] = [norm_call(3, 64, "float32", "float16"), add_norm_call(1, 64, "float32", "float16")]
    calls += [rope_call(turns, 7, "float16", "float16", PAGES["q8"]) for turns, _, _ in TURNS.values()]
    for call in calls:
        assert all(g % t == 0 for g, t in zip(call.grid, call.threadgroup, strict=True))
        assert np.prod(call.threadgroup) % 32 == 0


def test_what_is_not_supported_is_said() -> None:
    assert all(turns.supported() for turns, _, _ in TURNS.values())
    turns = TURNS["interleaved"][0]
    assert not replace(turns, head_dim=63).supported()
    assert not replace(turns, rope_dims=80).supported()
    assert not replace(turns, head_dim=512).supported()
    assert supports_width(1100)
    assert not supports_width(1102)
    assert not supports_width(4)


def test_rows_are_written_into_the_pool_in_place() -> None:
    """By MLX's scatter, which takes over a buffer that nobody else holds; the rule is the same on its CPU device."""
    pools = [mx.zeros((64 * 32 + 1, 2, 2, 64), mx.float16)]
    kv, slots = mx.ones((3, 2, 2, 64), mx.float16), mx.array([5, 2047, 70])
    mx.eval(pools, kv, slots)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    pools[0] = written(pools[0], slots, kv)
    mx.eval(pools)
    assert mx.get_peak_memory() - before < pools[0].nbytes / 4
    assert np.flatnonzero(np.array(pools[0])[:, 1, 1, 63]).tolist() == [5, 70, 2047]


def test_calls_are_launched_with_what_the_kernels_were_tested_with(tmp_path: Path) -> None:
    """Without Metal MLX records launches while it exports a function; ours are held to their signatures."""
    turns = TURNS["halves, head norms"][0]
    norm, eps, positions = mx.zeros(128), mx.array(1e-5), mx.zeros(8, mx.int32)
    shapes: list[list[tuple[int, ...]]] = []

    def launched(x: mx.array) -> mx.array:
        k = mx.zeros((5, 128), mx.float16)
        call = rope_call(turns, 5, "float16", "float16", PAGES["q4"])
        made = [call.launch(x, k, k, mx.zeros((64, 128)), positions, norm, norm, eps)]
        wide, weight = mx.zeros((5, 256)), mx.zeros(256)
        made += [norm_call(5, 256, "float16", "float16").launch(x, weight, eps)]
        made += [add_norm_call(5, 256, "float16", "float16").launch(wide, x, weight, eps)]
        made += [gate_call(5, 256, "float16", "float16").launch(x, x)]
        shapes.extend([out.shape for out in each] for each in made)
        return mx.concatenate([each[-1].reshape(-1).astype(mx.float32) for each in made])

    mx.export_function(str(tmp_path / "exported.mlxfn"), launched, mx.zeros((5, 256), mx.float16))
    assert shapes == [[(5, 2, 128), (5, 2, 1, 72)], [(5, 256)], [(5, 256), (5, 256)], [(5, 256)]]
