"""8 x 8 matrices of a simdgroup: products, loads and stores, and which lane holds which element.

Metal Shading Language Specification (version 4), 2.4 and 6.7 (6.8 from version 4.1 on): "The mapping of matrix elements
to threads in the SIMD-group is unspecified", and thread_elements() is in neither of its tables 6.9 and 6.10. So the
layout is an assumption, pinned to two independent sources that agree and run on every Apple GPU so far: MLX
(mlx/backend/metal/kernels/steel/gemm/mma.h, BaseMMAFrag::get_coord, at 846d176) and metal-flash-attention
(Sources/FlashAttention/GEMM/GEMMHeaders.swift, morton_order, which refers to patent US11256518B2). Both are restated
below in their own terms. Of our kernels only attention_prefill uses it.
"""

import numpy as np
import pytest

from engine.metal.kernel import Input, Kernel, Output
from tests.metal_host.run import KernelError, Order, run
from tests.metal_host.small import Array, computed, counting

A, B, C = np.random.default_rng(8).standard_normal((3, 8, 8)).astype(np.float32)


def mlx_layout(lane: int) -> tuple[int, int]:
    quad = lane // 4
    return (quad & 4) + lane // 2 % 4, (quad & 2) * 2 + lane % 2 * 2


def flash_attention_layout(lane: int) -> tuple[int, int]:
    quad = lane // 4
    row = quad // 4 * 4 + lane // 2 % (8 // 2)
    return row, (0 if quad % 4 < 2 else 4) + (2 if lane % 2 else 0)


def test_a_lane_holds_two_neighbours_where_both_sources_say() -> None:
    body = """
      simdgroup_float8x8 m;
      simdgroup_load(m, x, 8);
      y[i * 2] = m.thread_elements()[0];
      y[i * 2 + 1] = m.thread_elements()[1];"""
    got = computed(body, counting(64), threads=32, out=64)
    for layout in (mlx_layout, flash_attention_layout):
        at = [layout(lane) for lane in range(32)]
        np.testing.assert_array_equal(got, np.array([(8 * r + c, 8 * r + c + 1) for r, c in at]).reshape(-1))


def stored(body: str, *given: Array, shape: tuple[int, ...] = (8, 8), order: Order = Order()) -> Array:  # noqa: B008
    names = "abc"[: len(given)]
    kinds = {"uint16": "bfloat16"}
    inputs = tuple(Input(n, kinds.get(g.dtype.name, g.dtype.name)) for n, g in zip(names, given, strict=True))
    kernel = Kernel("matrix", inputs, (Output("y", "float32"),), "// thread_index_in_simdgroup\n" + body)
    return run(kernel, given, {}, (32, 1, 1), (32, 1, 1), [shape], order=order)[0]


PRODUCT = """
  simdgroup_float8x8 a8, b8, c8;
  simdgroup_load(a8, a, 8);
  simdgroup_load(b8, b, 8);
  simdgroup_load(c8, c, 8);
  simdgroup_multiply_accumulate(c8, a8, b8, c8);
  simdgroup_store(c8, y, 8);"""


def chained(a: Array, b: Array, c: Array) -> Array:
    """A chain of fma over ascending k, by way of double, where a product of floats is exact."""
    out = c.astype(np.float64)
    for k in range(8):
        out = (np.outer(a[:, k].astype(np.float64), b[k]) + out).astype(np.float32).astype(np.float64)
    return out.astype(np.float32)


def test_a_product_is_rows_by_columns_and_a_chain_over_k() -> None:
    """6.7.2: d = a * b + c. Order and inner precision are open: the host takes fma in float over ascending k."""
    np.testing.assert_array_equal(stored(PRODUCT, A, B, C), chained(A, B, C))


def test_another_order_of_k_finds_a_result_that_hangs_on_it() -> None:
    assert any((stored(PRODUCT, A, B, C, order=Order(sums=seed)) != chained(A, B, C)).any() for seed in range(1, 5))
    whole = [np.rint(m * 4) for m in (A, B, C)]
    np.testing.assert_array_equal(stored(PRODUCT, *whole, order=Order(sums=3)), whole[0] @ whole[1] + whole[2])


@pytest.mark.parametrize("kind", ["half", "bfloat"])
def test_narrow_operands_and_a_float_accumulator_mix(kind: str) -> None:
    whole = [np.rint(m * 4) for m in (A, B)]
    given = [m.astype(np.float16) if kind == "half" else (m.view(np.uint32) >> 16).astype(np.uint16) for m in whole]
    body = f"""
      simdgroup_{kind}8x8 a8, b8;
      simdgroup_float8x8 c8 = simdgroup_float8x8(0);
      simdgroup_load(a8, a, 8);
      simdgroup_load(b8, b, 8);
      simdgroup_multiply_accumulate(c8, a8, b8, c8);
      simdgroup_store(c8, y, 8);"""
    np.testing.assert_array_equal(stored(body, *given), whole[0] @ whole[1])


def test_load_and_store_take_stride_origin_and_transposition() -> None:
    """6.7.1: elements_per_row, then the origin, then whether rows become columns.

    Of the last two it gives types and defaults alone. That the origin is (column, row) is taken from the order of
    Cols and Rows in the type; no kernel of ours uses either.
    """
    wide = np.arange(16 * 20, dtype=np.float32).reshape(16, 20)
    body = """
      simdgroup_float8x8 m;
      simdgroup_load(m, a, 20, ulong2(3, 5), {});
      simdgroup_store(m, y, 8{});"""
    block = wide[5:13, 3:11]
    np.testing.assert_array_equal(stored(body.format("false", ""), wide), block)
    np.testing.assert_array_equal(stored(body.format("true", ""), wide), block.T)
    np.testing.assert_array_equal(stored(body.format("true", ", ulong2(0, 0), true"), wide), block)


def test_a_matrix_of_one_value_is_diagonal_and_a_filled_one_is_full() -> None:
    """6.7.1: simdgroup_matrix(T dval) "creates a diagonal matrix", make_filled_simdgroup_matrix fills."""
    diagonal = stored("simdgroup_float8x8 m(3.0f); simdgroup_store(m, y, 8); (void)a;", A)
    np.testing.assert_array_equal(diagonal, 3 * np.eye(8))
    filled = stored(
        "simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(a[0]); simdgroup_store(m, y, 8);", A
    )
    np.testing.assert_array_equal(filled, np.full((8, 8), A[0, 0]))


def test_a_load_beyond_the_end_names_its_line() -> None:
    with pytest.raises(KernelError, match=r"matrix body:4: out of bounds: read of 4 bytes at byte 256 of a"):
        stored("simdgroup_float8x8 m;\n\n simdgroup_load(m, a + 1, 8);\nsimdgroup_store(m, y, 8);", A)


def test_lanes_that_load_from_different_places_are_an_error() -> None:
    """2.4: operations on these matrices only under uniform control flow; their arguments are uniform too."""
    with pytest.raises(KernelError, match="give simdgroup_load different arguments"):
        stored("simdgroup_float8x8 m; simdgroup_load(m, a + thread_index_in_simdgroup, 8);", A)


def test_a_product_under_a_condition_of_the_lane_is_an_error() -> None:
    with pytest.raises(KernelError, match="divergence within a simdgroup"):
        stored("simdgroup_float8x8 m;\nif (thread_index_in_simdgroup < 8)\nsimdgroup_load(m, a, 8);", A)
