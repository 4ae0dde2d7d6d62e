"""Every way to multiply is within the bound that the supervisor holds it to, and what is planted is found out."""

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.judging import fault_of
from engine.metal.attention import Call
from engine.metal.products import Subject, operation, ways
from engine.metal.trials import Phase, Product, Weights, edges_for, rows_for
from engine.verdicts import Fate
from quant.formats import AFFINE, FORMATS, Affine, Format
from tests.engine.metal_world import on_host

ROWS: list[tuple[Format | Affine, str]] = [(row, "") for row in FORMATS.values()]
ROWS += [(AFFINE["affine4_64"], "f16"), (AFFINE["affine3_32"], "bf16"), (AFFINE["affine8_128"], "f32")]
# The laws of matmul itself have every format; to compile them all once more would take minutes.
SOME = pytest.mark.parametrize(
    ("row", "scales"),
    [(row, scales) for row, scales in ROWS if row.name in ("q4_k", "q6_k", "mxfp4", "f32", "affine4_64", "affine3_32")],
    ids=lambda value: getattr(value, "name", value),
)
EACH = pytest.mark.parametrize(("row", "scales"), ROWS, ids=lambda value: getattr(value, "name", value))
Q4_K = FORMATS["q4_k"]


def small(row: Format | Affine, scales: str, dtype: str = "float16") -> list[Product]:
    cols = 256 if not isinstance(row, Affine) and row.values > 8 else 128
    weights = Weights(row, scales, 9, cols)
    return [Product(phase.value, phase, edges_for(weights, dtype), weights) for phase in Phase]


@EACH
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_mlx_is_within_the_bound_that_is_generous_to_it(row: Format | Affine, scales: str, dtype: mx.Dtype) -> None:
    names = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32"}
    assert fault_of(ways(row, dtype)[0], small(row, scales, names[dtype])) is None


@SOME
def test_ours_are_within_their_bounds_and_keep_a_rows_bits(row: Format | Affine, scales: str) -> None:
    found = ways(row, mx.float16, on_host)
    for way in (found[1], found[2]):  # over what MLX takes, and over blocks where there are any
        assert fault_of(way, small(row, scales)) is None, way.name


@EACH
def test_bounds_of_ours_are_far_below_a_hundredth(row: Format | Affine, scales: str) -> None:
    for trial in small(row, scales, "float32"):
        for way in ways(row, mx.float32, on_host):
            if way.promises(trial):
                sizes = np.abs(trial.x) @ np.abs(trial.weights.decoded).T
                part, flushed = 1e-4, np.float64(1e-30)
                if trial.phase is Phase.PROMPT:  # whose tiles may hold weights in float16: half of the least is 2**-25
                    part, flushed = 2e-3, 1e-30 + np.abs(trial.x).sum(1)[:, None] * 1.01 * 2.0**-24
                assert (way.bound(trial) <= part * sizes + flushed).all()


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if not row.dense])
def test_rows_of_blocks_are_in_every_bit_what_the_format_says(name: str) -> None:
    row = FORMATS[name]
    weights = Weights(row, "", 11, 2 * row.values)
    held = next(w for w in ways(row, mx.float16, on_host) if w.blocks).hold(weights.tensor)
    for ids in ([3], [10, 0, 10, 4]):
        np.testing.assert_array_equal(np.array(held.at(mx.array(ids))), weights.decoded[ids])


def test_more_rows_than_a_launch_takes_are_several_with_the_same_bits() -> None:
    weights = Weights(Q4_K, "", 9, 256)
    held = next(w for w in ways(Q4_K, mx.float16, on_host) if w.blocks).hold(weights.tensor)
    x = mx.array(rows_for(weights, 35, "float16")).astype(mx.float16)
    together = np.array(held.times(x, Phase.DECODE))
    np.testing.assert_array_equal(np.array(held.times(x[33:34], Phase.DECODE)), together[33:34])


@pytest.mark.parametrize(
    ("good", "bad", "fate"),
    [
        ("simd_shuffle_xor(given, ushort(M))", "simd_shuffle_xor(given, ushort(M)) * 1.0001f", Fate.DIFFERS),
        ("sum = fma(w.a.y, x.a.y, sum)", "sum = fma(w.a.y, x.a.z, sum)", Fate.DIFFERS),
        ("if (WHOLE || uint(t) < tall)", "if (uint(t) < tall + 1)", Fate.UNCOMPILED),  # out of bounds: the host says so
        ("float sums[ROWS * TILE];", "flaot sums[ROWS * TILE];", Fate.UNCOMPILED),
    ],
)
def test_a_fault_planted_in_the_source_is_found_out(good: str, bad: str, fate: Fate) -> None:
    way = next(w for w in ways(Q4_K, mx.float32, on_host) if w.blocks)

    def spoiled(call: Call, inputs: Sequence[mx.array]) -> list[mx.array]:
        assert good in call.kernel.header or "many" in call.kernel.name
        kernel = replace(call.kernel, header=call.kernel.header.replace(good, bad))
        return on_host(replace(call, kernel=kernel), inputs)

    found = fault_of(replace(way, launch=spoiled), small(Q4_K, "", "float32"))
    assert found is not None
    assert found.fate is fate


def test_the_source_of_a_way_is_all_that_its_results_hang_on() -> None:
    every = [way for dtype in (mx.float16, mx.float32) for row, _ in ROWS for way in ways(row, dtype)]
    assert len({way.source for way in every}) == len(every)
    assert [way.source for way in ways(Q4_K, mx.float16)] == [way.source for way in ways(Q4_K, mx.float16, on_host)]


def test_each_format_scale_size_and_dtype_is_an_operation_of_its_own() -> None:
    f16, bf16 = (Weights(AFFINE["affine4_64"], scales, 9, 128).tensor for scales in ("f16", "bf16"))
    subjects = [Subject.of(f16, mx.float16), Subject.of(bf16, mx.float16), Subject.of(f16, mx.bfloat16)]
    subjects += [Subject.of(replace(f16, shape=(4096, 2048)), mx.float16), Subject(Q4_K, "", False, mx.float32)]
    assert [operation(subject).key for subject in subjects] == [
        "product affine4_64-f16 small float16",
        "product affine4_64-bf16 small float16",
        "product affine4_64-f16 small bfloat16",
        "product affine4_64-f16 large float16",
        "product q4_k small float32",
    ]
    assert [Subject.named(str(subject)) for subject in subjects] == subjects


@pytest.mark.parametrize("key", ["", "sum", "product q9_k small float16", "product q4_k vast float16", "a b c d e"])
def test_a_name_of_something_else_is_no_subject(key: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        Subject.named(key)
