"""Paged attention on the Apple GPU, run on the host: float64 within its bound, the same bits in any batch."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.metal import attention
from engine.metal.attention import (
    HEAD_DIMS,
    PAGES,
    PARTITION,
    DecodeWork,
    Paged,
    PrefillWork,
    decode_call,
    merge_call,
    prefill_call,
    roomy,
    supports,
)
from engine.metal.attention_numbers import narrowed, widened
from engine.metal.attention_reference import Class
from tests.metal_host.attention_cases import Case, World
from tests.metal_host.layer_cases import fusing, ran
from tests.metal_host.run import Order

# Each instance of a kernel is compiled, so that a case has to serve several laws.
CASES = {
    "ends of partitions": Case(((300, 1), (0, 1), (255, 1), (256, 1), (31, 1))),
    "80 wide, three share one, window over two partitions, bfloat16": Case(
        ((250, 9), (0, 5), (513, 2)),
        group=3,
        kv_heads=1,
        head_dim=80,
        queries="bfloat16",
        out="bfloat16",
        pages="bfloat16",
        window=40,
    ),
    "96 wide, float32": Case(
        ((40, 33), (0, 3)), group=1, head_dim=96, queries="float32", out="float32", pages="float32"
    ),
    "128 wide, 8 bits": Case(((255, 3), (64, 1)), group=4, kv_heads=1, head_dim=128, queries="float32", pages="q8"),
    "256 wide, eight share one": Case(((33, 2), (0, 34)), group=8, kv_heads=1, head_dim=256, window=30),
    "4 bits, seven share one, heads apart": Case(((62, 3), (5, 1)), group=7, head_dim=64, pages="q4", by_head=True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
both = pytest.mark.parametrize("kind", ["decode", "prefill"])


def require_exact(world: World, kind: Class, order: Order = Order()) -> None:  # noqa: B008
    for got, span in zip(world.attend(kind, world.spans(), order), world.spans(), strict=True):
        want = world.exact(kind, *span)
        np.testing.assert_array_less(np.abs(widened(got, world.case.out) - want.exact), want.bound)


@both
@every_case
def test_equals_exact_arithmetic_within_the_bound(case: Case, kind: Class) -> None:
    require_exact(World(case), kind)


@both
@every_case
def test_a_row_has_the_same_bits_alone_and_in_any_chunk(case: Case, kind: Class) -> None:
    world = World(case)
    for (b, past, n), rows in zip(world.spans(), world.attend(kind, world.spans()), strict=True):
        for r in range(0, n, -(-n // 10)):
            np.testing.assert_array_equal(world.attend(kind, [(b, past + r, 1)])[0], rows[r : r + 1])
        if n > 2:
            cut = [(b, past + 1, n - 2), (b, past + n - 1, 1), (b, past, 1)]
            middle, last, first = world.attend(kind, cut)
            np.testing.assert_array_equal(np.concatenate([first, middle, last]), rows)


SIZES = {
    f"{dim} wide, {pages}": Case(
        ((33, 2), (0, 1)),
        kv_heads=1,
        head_dim=dim,
        pages=pages,
        queries="bfloat16" if pages == "bfloat16" else "float16",
    )
    for dim in HEAD_DIMS
    for pages in PAGES
}


@both
@pytest.mark.parametrize(
    "case", [c for c in SIZES.values() if supports(c.shape)], ids=lambda c: f"{c.head_dim}-{c.pages}"
)
def test_every_head_size_is_right_over_every_kind_of_pages_and_a_row_alone_too(case: Case, kind: Class) -> None:
    require_exact(World(case), kind)
    world = World(case)
    together = world.attend(kind, world.spans())
    np.testing.assert_array_equal(world.attend(kind, [(0, 34, 1)])[0], together[0][1:])


def test_only_the_widest_heads_over_float32_are_not_supported() -> None:
    assert [name for name, case in SIZES.items() if not supports(case.shape)] == ["256 wide, float32"]


@both
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_a_value_that_is_no_number_reaches_the_rows_that_see_it_and_no_others(kind: Class, wrong: float) -> None:
    require_kept_apart(replace(CASES["96 wide, float32"], sequences=((0, 40),)), kind, wrong)


def require_kept_apart(case: Case, kind: Class, wrong: float) -> None:
    clean, spoiled = World(case), World(case)
    kv = np.random.default_rng(1).standard_normal((1, 2, case.kv_heads, case.head_dim))
    clean.put(0, 17, kv)
    kv[0, 1, 0, 5] = wrong
    spoiled.put(0, 17, kv)
    want, got = clean.attend(kind, clean.spans())[0], spoiled.attend(kind, spoiled.spans())[0]
    heads = slice(0, case.group)
    assert not np.isfinite(got[17:, heads, 5]).any()
    got[17:, heads, 5] = want[17:, heads, 5]
    np.testing.assert_array_equal(got, want)


@both
@pytest.mark.parametrize("name", ["96 wide, float32", "128 wide, 8 bits"])
def test_a_key_that_is_no_number_is_not_taken_for_an_answer(kind: Class, name: str) -> None:
    case = replace(CASES[name], sequences=((20, 15),))
    clean, spoiled = World(case), World(case)
    kv = np.random.default_rng(1).standard_normal((1, 2, case.kv_heads, case.head_dim))
    clean.put(0, 30, kv)
    kv[0, 0, 0, 7] = np.nan
    spoiled.put(0, 30, kv)
    want, got = (widened(w.attend(kind, w.spans())[0], case.out) for w in (clean, spoiled))
    assert np.isnan(got[10:, : case.group]).all()
    got[10:, : case.group] = want[10:, : case.group]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("decode", Order(reverse=True, contract=True, sums=3)),
        ("prefill", Order(reverse=True, contract=True)),  # its sums are the matrix units' own
    ],
)
def test_what_the_language_leaves_open_changes_no_bit(
    kind: Class, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor would it if the compiler did not obey the word against fusing."""
    world = World(replace(CASES["96 wide, float32"], sequences=((300, 2), (40, 3))))
    want = world.attend(kind, world.spans())
    for name in ("DECODE", "MERGE", "PREFILL"):
        monkeypatch.setattr(attention, name, fusing(getattr(attention, name)))
    for got, rows in zip(world.attend(kind, world.spans(), order), want, strict=True):
        np.testing.assert_array_equal(got, rows)


@both
def test_layouts_give_the_same_bits(kind: Class) -> None:
    case = CASES["4 bits, seven share one, heads apart"]
    apart, together = World(case), World(replace(case, by_head=False))
    for got, want in zip(apart.attend(kind, apart.spans()), together.attend(kind, together.spans()), strict=True):
        np.testing.assert_array_equal(got, want)


@both
def test_scores_far_apart_neither_overflow_nor_vanish(kind: Class) -> None:
    """Of scores near +-500, one token takes all: what comes out is its value."""
    world = World(Case(((300, 1), (0, 1), (255, 1), (256, 1), (31, 1))))
    world.q = [narrowed(widened(q, "float16") * 100, "float16") for q in world.q]
    require_exact(world, kind)


def test_partitions_are_merged_in_ascending_order() -> None:
    """In float32, 1e8 + 1 - 1e8 is 0 and 1e8 - 1e8 + 1 is 1."""
    shape = Case((), group=1, kv_heads=1, out="float32").shape
    work = DecodeWork.of(shape, np.array([0, 1], np.int32), np.array([600], np.int32), [0])
    partials = np.zeros((3, 1, 1, 66), np.float32)
    partials[:, 0, 0, 0], partials[:, 0, 0, 1], partials[:, 0, 0, 65] = (1e8, 1, -1e8), (1e8, -1e8, 1), 1
    out = ran(merge_call(shape, work), {"partials": partials, "parts": roomy(work.parts)})[0]
    assert out[0, 0, :2].tolist() == [0, np.float32(1) / np.float32(3)]


def test_tokens_of_a_page_are_summed_in_ascending_order_and_then_pages_by_halves() -> None:
    case = Case(((0, 1), (255, 1)), group=1, head_dim=96, queries="float32", out="float32", pages="float32")
    world = World(case)
    world.q[1][...] = 0  # all weights are 1
    kv = np.zeros((256, 2, 2, 96))
    for column, tokens in enumerate(([0, 1, 2], [0, 32, 128], [0, 32, 64])):
        kv[tokens, 1, :, column] = np.array([[1e8], [1], [-1e8]])
    world.put(1, 0, kv)
    got = world.attend("decode", world.spans())[1]
    np.testing.assert_array_equal(got[0, :, :3], [[0, 1 / 256, 1 / 256]] * 2)


def test_every_row_meets_each_partition_that_it_sees_once() -> None:
    shape = Case((), group=3, window=300).shape
    starts, past = np.array([0, 1, 20, 21], np.int32), np.array([1000, 250, 0], np.int32)
    work = DecodeWork.of(shape, starts, past, [2, 1])
    assert work.served.tolist() == [20, *range(1, 20)]
    for row, (first, count, place, _) in zip(work.served, work.parts, strict=True):
        b = int(np.searchsorted(starts, row, "right")) - 1
        position = past[b] + row - starts[b]
        run = work.items[first : first + count]
        assert (run[:, 0] == b).all()
        assert (run[:, 2] + place == row).all()
        assert (place < run[:, 3]).all()
        assert run[:, 1].tolist() == list(range(shape.first_seen(position) // PARTITION, position // PARTITION + 1))


def test_tiles_hold_each_row_once() -> None:
    starts = np.array([0, 1, 70, 70 + 32], np.int32)
    work = PrefillWork.of(starts, [1, 2])
    rows = [row for _, first, n, _ in work.items for row in range(first, first + n)]
    assert rows == work.served.tolist() == list(range(1, 102))
    assert work.items[:, 3].tolist() == [0, 32, 64, 69]


def test_what_is_dispatched_fits_the_shapes() -> None:
    """Whole threadgroups of whole simdgroups, within what every Apple GPU takes."""
    starts, past = np.array([0, 5], np.int32), np.array([600], np.int32)
    for head_dim in HEAD_DIMS:
        for group in range(1, 9):
            shape = Case((), group=group, head_dim=head_dim).shape
            assert supports(shape)
            work = DecodeWork.of(shape, starts, past, [0])
            calls = decode_call(shape, work), merge_call(shape, work), prefill_call(shape, PrefillWork.of(starts, [0]))
            for call in calls:
                assert all(g % t == 0 for g, t in zip(call.grid, call.threadgroup, strict=True))
                assert np.prod(call.threadgroup) <= 256
            queries = calls[0].template["QUERIES"]
            assert isinstance(queries, int)
            assert work.rows * shape.share <= queries <= shape.together
            assert 32 % queries == 0


def test_calls_are_launched_with_what_the_kernels_were_tested_with(tmp_path: Path) -> None:
    """Without Metal MLX records launches while it exports a function; ours are held to their signatures."""
    shape = CASES["80 wide, three share one, window over two partitions, bfloat16"].shape
    starts, past = np.array([0, 1, 4], np.int32), np.array([260, 3], np.int32)
    work, tiles = DecodeWork.of(shape, starts, past, [0]), PrefillWork.of(starts, [1])
    paged = Paged.of(np.zeros((2, 9), np.int32), np.array([260, 3, 4, 5], np.int32))
    pool, scale = mx.zeros((9 * 32 + 1, 2, 1, 80), mx.bfloat16), mx.array(0.1)
    shapes: list[tuple[int, ...]] = []

    def launched(q: mx.array) -> mx.array:
        where = paged.tables, paged.positions
        partials = decode_call(shape, work).launch(q, pool, *where, mx.array(roomy(work.items)), scale)
        made = merge_call(shape, work).launch(*partials, mx.array(roomy(work.parts)))
        made += prefill_call(shape, tiles).launch(q, pool, *where, mx.array(roomy(tiles.items)), scale)
        shapes.extend(out.shape for out in made)
        return mx.concatenate(made)

    mx.export_function(str(tmp_path / "exported.mlxfn"), launched, mx.zeros((4, 3, 80), mx.bfloat16))
    assert shapes == [(1, 3, 80), (3, 3, 80)]


def test_what_is_not_supported_is_said() -> None:
    shape = Case(()).shape
    assert not supports(replace(shape, head_dim=72))
    assert not supports(replace(shape, heads=18))
    assert not supports(replace(shape, heads=3))
    assert not supports(replace(shape, queries="int8"))
    assert not supports(replace(shape, mixed="int8"))
    assert not supports(replace(shape, pages=PAGES["float32"], head_dim=256))
    assert all(supports(replace(shape, pages=pages)) for pages in PAGES.values())
