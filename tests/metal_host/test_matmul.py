"""Metal's matmul: each weight is the format's own, sums err within their bound, rows know nothing of each other.

Run on the host, where every access is checked. One instance of a kernel serves all laws of a kind: compiling takes most
of the time.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine.metal.kernel import Kernel
from engine.metal.matmul import Few, Many, Plan, Reading, few, launch, many, reading, reference
from quant.formats import AFFINE, FORMATS
from tests.engine.weight_cases import F32, Kind, Weights, weights
from tests.metal_host.run import KernelError, Order, run

Array = npt.NDArray[np.generic]

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
NUMPY = {"u8": "u1", "u32": "<u4", "f16": "<f2", "bf16": "<u2", "f32": "<f4"}
# Every width with every group, and each type of scales with some of them.
PLANES = [Kind(name, ("f16", "bf16", "f32")[i % 4 % 3]) for i, name in enumerate(AFFINE)]
KINDS = [Kind(name) for name in FORMATS] + PLANES
Q4_K, Q4_0, PLANES_4 = Kind("q4_k"), Kind("q4_0"), Kind("affine4_64", "f16")
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def reading_of(kind: Kind) -> Reading:
    return reading(AFFINE[kind.name], DTYPES[kind.scales]) if kind.scales else reading(FORMATS[kind.name])


def few_of(kind: Kind) -> Few:
    return Few(reading_of(kind), owned=2 if reading_of(kind).heavy else 4)


def many_of(kind: Kind) -> Many:
    return Many(reading_of(kind))


WAYS = [few_of, many_of]


def arrays(w: Weights) -> list[Array]:
    """The planes as kernels get them, a row of weights in each row; bfloat16 as its bits."""
    dtypes = [plane.dtype if w.kind.name not in DTYPES else w.kind.name for plane in w.planes]
    planes = [np.frombuffer(plane.data, NUMPY[dtype]) for plane, dtype in zip(w.planes, dtypes, strict=True)]
    return [plane.reshape(len(w.decoded), -1) for plane in planes]


def product(way: Few | Many, x: F32, w: Weights, plan: Plan | None = None, order: Order = Order()) -> F32:  # noqa: B008
    plan = plan or way.plan(len(x), len(w.decoded))
    return read(made_by(way.kernel, plan, stored(x, way.dtype), w, order), way.dtype)


def made_by(kernel: Kernel, plan: Plan, x: Array, w: Weights, order: Order) -> Array:
    given = [x, *arrays(w)]
    return run(kernel, given, plan.template, plan.grid, plan.threadgroup, [plan.shape], order=order)[0]


def with_header(kernel: Kernel, right: str, wrong: str) -> Kernel:
    assert kernel.header.count(right) == 1
    return replace(kernel, header=kernel.header.replace(right, wrong))


def stored(x: F32, dtype: str) -> Array:
    if dtype == "bfloat16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(dtype)


def read(x: Array, dtype: str) -> F32:
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def in_tiles_of(rows: int, way: Few, count: int, weight_rows: int) -> Plan:
    """The plan for `count` rows of x that another number of rows would choose its tile by."""
    tile = way.plan(rows, weight_rows)
    grid = (-(-count // int(tile.template["TILE"])) * tile.threadgroup[0], *tile.grid[1:])
    return replace(tile, grid=grid, shape=(count, weight_rows))


def width(kind: Kind) -> int:
    """More pieces than lanes, and not a multiple of 32 of them."""
    piece = reading_of(kind).piece
    step = max(8, kind.group)
    return next(cols for cols in range(step, 4096, step) if cols > 33 * piece and cols % (32 * piece))


def one_hot(kind: Kind) -> F32:
    """Each column of whole blocks alone; 40 dense weights are a tile of the K of many rows and a part of the next."""
    return np.eye(40 if kind.group == 1 else -(-96 // kind.group) * kind.group, dtype=np.float32)


def rounded_to_half(values: F32) -> F32:
    return values.astype(np.float16).astype(np.float32)


@every_kind
def test_few_rows_meet_exactly_the_weights_that_the_format_defines(kind: Kind) -> None:
    x = one_hot(kind)
    w = weights(kind, 9, len(x))
    np.testing.assert_array_equal(product(few_of(kind), x, w), w.decoded.T)


@every_kind
def test_many_rows_meet_exactly_those_weights_rounded_to_their_tile(kind: Kind) -> None:
    x = one_hot(kind)
    w = weights(kind, 61, len(x))
    np.testing.assert_array_equal(product(many_of(kind), x, w), rounded_to_half(w.decoded).T)


@every_kind
def test_few_rows_err_within_their_bound(kind: Kind) -> None:
    way, w = few_of(kind), weights(kind, 11, width(kind))
    x = np.random.default_rng(1).standard_normal((11, width(kind)), np.float32)
    error = np.abs(product(way, x, w) - reference(x, w.decoded))
    assert (error <= way.bound(x, w.decoded)).all()


@pytest.mark.parametrize("kind", [Q4_K, Kind("q6_k"), PLANES_4, Kind("bf16")], ids=str)
def test_many_rows_err_within_their_bound(kind: Kind) -> None:
    way, w = many_of(kind), weights(kind, 70, width(kind))
    x = np.random.default_rng(2).standard_normal((67, width(kind)), np.float32)
    error = np.abs(product(way, x, w) - reference(x, w.decoded))
    assert (error <= way.bound(x, w.decoded)).all()


@every_kind
def test_few_rows_have_the_same_bits_alone_and_in_a_batch(kind: Kind) -> None:
    way, w = few_of(kind), weights(kind, 7, width(kind))
    x = np.random.default_rng(3).standard_normal((11, width(kind)), np.float32)
    together = product(way, x, w)
    for first, last in ((0, 1), (4, 5), (7, 10), (10, 11)):
        some = product(way, x[first:last], w, in_tiles_of(8, way, last - first, 7))
        np.testing.assert_array_equal(some.view(np.uint32), together[first:last].view(np.uint32))


@pytest.mark.parametrize("kind", [Q4_K, Q4_0, PLANES_4], ids=str)
def test_a_tile_of_any_height_gives_a_row_the_same_bits(kind: Kind) -> None:
    way, w = few_of(kind), weights(kind, 7, width(kind))
    x = np.random.default_rng(4).standard_normal((9, width(kind)), np.float32)
    together = product(way, x, w).view(np.uint32)
    for rows in (1, 2, 3, 4):
        np.testing.assert_array_equal(product(way, x[:rows], w).view(np.uint32), together[:rows])


def test_how_many_rows_of_weights_a_simdgroup_owns_changes_no_bit() -> None:
    w = weights(Q4_K, 11, 1280)
    x = np.random.default_rng(5).standard_normal((9, 1280), np.float32)
    ways = few(reading_of(Q4_K), 11)
    assert {way.plan(9, 11).template["ROWS"] for way in ways} == {1, 2, 4}
    first, *others = (product(way, x, w).view(np.uint32) for way in ways)
    for other in others:
        np.testing.assert_array_equal(first, other)


@every_kind
def test_many_rows_have_the_same_bits_alone_and_in_a_batch(kind: Kind) -> None:
    cols = max(512, kind.group) if kind.group > 1 else 72
    way, w = many_of(kind), weights(kind, 9, cols)
    x = np.random.default_rng(6).standard_normal((67, cols), np.float32)
    together = product(way, x, w)
    for row in (0, 13, 63, 66):
        np.testing.assert_array_equal(
            product(way, x[row : row + 1], w).view(np.uint32)[0], together.view(np.uint32)[row]
        )


OPEN = [(few_of, kind) for kind in KINDS] + [(many_of, PLANES_4)]


@pytest.mark.parametrize(("way", "kind"), OPEN, ids=[f"{way.__name__}-{kind}" for way, kind in OPEN])
def test_what_the_language_leaves_open_changes_no_bit(way: Callable[[Kind], Few | Many], kind: Kind) -> None:
    """Codes become numbers by arithmetic in halves, in which nothing is ever subnormal."""
    one, w = way(kind), weights(kind, 7, 512)
    x = np.random.default_rng(7).standard_normal((9, 512), np.float32)
    first = product(one, x, w)
    for order in (Order(reverse=True), Order(flush=True)):
        np.testing.assert_array_equal(product(one, x, w, order=order).view(np.uint32), first.view(np.uint32))


@pytest.mark.parametrize("kind", [Q4_K, Q4_0, PLANES_4], ids=str)
def test_a_compiler_that_fuses_what_it_can_changes_no_bit(kind: Kind) -> None:
    """Every multiply-add is written as one: the pragma against fusing is for planes with scales in float32 alone."""
    way, w = few_of(kind), weights(kind, 7, 512)
    x = np.random.default_rng(7).standard_normal((9, 512), np.float32)
    kernel = with_header(way.kernel, "#pragma METAL fp contract(off)", "")
    fused = made_by(kernel, way.plan(9, 7), x, w, Order(contract=True))
    np.testing.assert_array_equal(fused.view(np.uint32), product(way, x, w).view(np.uint32))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_sums_in_the_matrix_unit_keeps_the_bound(seed: int) -> None:
    way, w = Many(reading_of(PLANES_4), tile_weights="float32"), weights(PLANES_4, 7, 512)
    x = np.random.default_rng(7).standard_normal((9, 512), np.float32)
    error = np.abs(product(way, x, w, order=Order(sums=seed)) - reference(x, w.decoded))
    assert (error <= way.bound(x, w.decoded)).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_is_not_finite_spoils_no_other(way: Callable[[Kind], Few | Many]) -> None:
    one, w = way(Q4_K), weights(Q4_K, 7, 512)
    x = np.random.default_rng(8).standard_normal((9, 512), np.float32)
    spoiled = x.copy()
    spoiled[4, 5], spoiled[6, 500] = np.inf, np.nan
    got, want = product(one, spoiled, w), product(one, x, w)
    others = [0, 1, 2, 3, 5, 7, 8]
    np.testing.assert_array_equal(got[others].view(np.uint32), want[others].view(np.uint32))
    assert not np.isfinite(got[[4, 6]]).any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_candidate_keeps_its_bound_for_x_and_y_of_every_type(dtype: str) -> None:
    w = weights(Q4_K, 9, 512)
    x = read(stored(np.random.default_rng(9).standard_normal((9, 512), np.float32), dtype), dtype)
    ways: list[Few | Many] = [few(reading_of(Q4_K), 9, dtype)[0], *many(reading_of(Q4_K), dtype)]
    for way in ways:
        error = np.abs(product(way, x, w) - reference(x, w.decoded))
        assert (error <= way.bound(x, w.decoded)).all()


def test_tiles_in_float32_are_bound_far_closer() -> None:
    x, decoded = np.ones((2, 512), np.float32), weights(Q4_K, 9, 512).decoded
    best, half, *_ = (way.bound(x, decoded) for way in many(reading_of(Q4_K)))
    assert (best < half / 4).all()


PLANTED = {
    "a nibble taken for the other": ("fields<4 * HIGH, 4, 0>(raw.qs[W])", "fields<4 - 4 * HIGH, 4, 0>(raw.qs[W])"),
    "a lane that skips a piece": ("piece = lane;", "piece = lane + 1;"),
    "a sum for the wrong row": ("upper ? v[i] : v[i + N / 2]", "upper ? v[i + N / 2] : v[i]"),
}
BARRIER = "    threadgroup_barrier(mem_flags::mem_threadgroup);"
RACES = {
    "tiles overwritten": f"{BARRIER}  // the tiles before are read\n",
    "tiles half written": f"{BARRIER}  // these are written\n",
}


@pytest.mark.parametrize(("right", "wrong"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_leaves_the_bound(right: str, wrong: str) -> None:
    way, w = few_of(Q4_K), weights(Q4_K, 7, 512)
    x = np.random.default_rng(11).standard_normal((9, 512), np.float32)
    made = read(made_by(with_header(way.kernel, right, wrong), way.plan(9, 7), x, w, Order()), "float32")
    assert (np.abs(made - reference(x, w.decoded)) > way.bound(x, w.decoded)).any()


def test_a_row_of_weights_beyond_the_last_is_out_of_bounds() -> None:
    way, w = few_of(Q4_K), weights(Q4_K, 7, 512)
    kernel = with_header(way.kernel, "weights.row(min(n0 + r, N - 1))", "weights.row(n0 + r)")
    with pytest.raises(KernelError, match="out of bounds"):
        made_by(kernel, way.plan(9, 7), np.ones((9, 512), np.float32), w, Order())


@pytest.mark.parametrize("barrier", RACES.values(), ids=RACES)
def test_a_barrier_left_out_is_a_race(barrier: str) -> None:
    way, w = many_of(Q4_K), weights(Q4_K, 7, 512)
    with pytest.raises(KernelError, match="no barrier between"):
        made_by(with_header(way.kernel, barrier, ""), way.plan(9, 7), np.ones((9, 512), np.float32), w, Order())


@pytest.mark.parametrize("way", WAYS)
def test_mlx_takes_the_launch(way: Callable[[Kind], Few | Many], tmp_path: Path) -> None:
    """MLX without Metal runs no kernel, but it records one in a function that is exported, and checks its arguments."""
    words, scales = mx.zeros((7, 64), mx.uint32), mx.zeros((7, 8), mx.float16)

    def made(x: mx.array) -> mx.array:
        y = launch(way(PLANES_4), x, [words, scales, scales])
        assert y.shape == (9, 7)
        assert y.dtype == mx.float32
        return y

    mx.export_function(str(tmp_path / "exported.mlxfn"), made, mx.zeros((9, 512)))


def test_a_plan_covers_every_row_once() -> None:
    for rows in range(1, 33):
        for weight_rows in (1, 7, 8, 9, 2048, 2049):
            plan = few_of(Q4_K).plan(rows, weight_rows)
            assert plan.grid[0] % plan.threadgroup[0] == 0
            tile, owned, groups = (int(plan.template[name]) for name in ("TILE", "ROWS", "SIMDGROUPS"))
            assert 0 <= plan.grid[0] // plan.threadgroup[0] * tile - rows < tile
            assert 0 <= plan.grid[1] * owned * groups - weight_rows < owned * groups


def test_shapes_that_do_not_fill_blocks_or_would_lie_in_constant_memory_are_not_supported() -> None:
    assert reading_of(Q4_K).supports(8, 256)
    assert not reading_of(Q4_K).supports(8, 255)
    assert not reading_of(Q4_K).supports(0, 256)
    assert reading_of(PLANES_4).supports(4, 128)
    assert not reading_of(PLANES_4).supports(3, 128)
    assert reading_of(Kind("f16")).supports(1, 8)
    assert not reading_of(Kind("f16")).supports(100, 12)


def test_few_are_at_most_32_rows() -> None:
    for rows, served in ((0, False), (1, True), (32, True), (33, False)):
        assert few_of(Q4_K).supports(rows, 8, 256) == served
        assert many_of(Q4_K).supports(rows, 8, 256) == (rows > 0)


def test_every_format_of_the_table_has_a_case() -> None:
    assert {kind.name for kind in KINDS} == {*FORMATS, *AFFINE}
    for scales in ("f16", "bf16", "f32"):
        of = [AFFINE[kind.name] for kind in PLANES if kind.scales == scales]
        assert len({row.bits for row in of}) > 2
        assert len({row.group for row in of}) > 1
