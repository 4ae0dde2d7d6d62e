"""The words of the Metal language that kernels use mean on the host what the specification says."""

import numpy as np
import pytest

from engine.metal.kernel import ATTRIBUTES, Input, Kernel, Output, Template
from tests.metal_host.build import CompileError
from tests.metal_host.run import run
from tests.metal_host.small import computed, counting

# MSL specification, 2.2 (vectors), 2.2.3 (packed), 2.5 (sizes), 2.21 (as_type), 6.2 to 6.5 and 6.8 (functions): one
# value of eight, each from a sentence or table there. metal::precise and metal::fast are of 6.5.
VALUES: dict[str, list[float]] = {
    "float4 v(1, 2, 3, 4); v.xy = v.yx; v.w *= 10; r = v;": [2, 1, 3, 40],
    "r = float4(float2(1, 2), 3, 4) + 1;": [2, 3, 4, 5],
    "r = float4(float3(1, 2, 3), 4).wzyx;": [4, 3, 2, 1],
    "float4 v(0); v.zw = float2(7, 8); v.x = v.w; r = v;": [8, 0, 7, 8],
    "r = float4(half4(1, 2, 3, 4) * 2.0h);": [2, 4, 6, 8],
    "r = float4(uint4(1, 2, 3, 4) << 2 & uint4(4, 8, 12, 15));": [4, 8, 12, 0],
    "r = select(float4(1), float4(2), float4(1, 2, 3, 4) > 2);": [1, 1, 2, 2],
    "r = float4(as_type<uchar4>(0x04030201u));": [1, 2, 3, 4],
    "r = float4(as_type<float>(0x3f800000u), as_type<half>(ushort(0x3c00)), as_type<float>(as_type<uint>(5.0f)), 0);": [
        1,
        1,
        5,
        0,
    ],
    "r = float4(float(as_type<half2>(0x40003c00u).y), float(as_type<bfloat>(ushort(0x3f80))), 0, 0);": [2, 1, 0, 0],
    "ushort4 v(0, 0x3f80, 3, 4); r = float4(as_type<float>(v.xy), float(half2(v.zw).y), v.zw[0], 0);": [1, 4, 3, 0],
    "r = float4(char4(-1, 2, -3, 4));": [-1, 2, -3, 4],
    "r = float4(dot(float4(1, 2, 3, 4), float4(1)), length(float2(3, 4)), 0, 0);": [10, 5, 0, 0],
    "r = clamp(float4(-1, 0.5, 2, 9), 0.0f, 1.0f);": [0, 0.5, 1, 1],
    "r = max(float4(1, NAN, 3, 4), float4(2));": [2, 2, 3, 4],
    "r = float4(min(1.0f, NAN), max(-INFINITY, -2.0f), fmin(3.0f, 4.0f), abs(-5));": [1, -2, 3, 5],
    "r = fma(float4(2), float4(3), float4(1, 2, 3, 4));": [7, 8, 9, 10],
    "r = float4(exp2(3.0f), log2(8.0f), rsqrt(4.0f), sqrt(9.0f));": [8, 3, 0.5, 3],
    "r = float4(metal::precise::exp(0.0f), metal::fast::exp(0.0f), exp(-INFINITY), metal::exp(half(0)));": [1, 1, 0, 1],
    "r = float4(floor(-1.5f), ceil(-1.5f), trunc(-1.5f), rint(2.5f));": [-2, -1, -1, 2],
    "r = float4(popcount(7u), clz(1u), ctz(8u), sign(-3.0f));": [3, 31, 3, -1],
    "r = float4(extract_bits(0xabcdu, 4, 8), insert_bits(0u, 3u, 4, 2), reverse_bits(1u) >> 31, 0);": [0xBC, 48, 1, 0],
    "r = float4(any(bool2(true, false)), all(bool2(true, false)), sizeof(float3), sizeof(packed_float3));": [
        1,
        0,
        16,
        12,
    ],
    "r = float4(mix(1.0f, 3.0f, 0.5f), saturate(7.0f), fract(1.25f), copysign(2.0f, -1.0f));": [2, 1, 0.25, -2],
    "r = float4(numeric_limits<float>::max() > 3e38f, Limits<half>::max > HALF_MAX, HALF_MAX, ceildiv(7, 4));": [
        1,
        1,
        65504,
        2,
    ],
    "half4x4 m; m[1][2] = 5.0h; r = float4(m[1][2], 0, 0, 0);": [5, 0, 0, 0],
    "struct P { uchar a; half b; }; r = float4(sizeof(P), sizeof(half4), alignof(half4), sizeof(ulong));": [4, 8, 8, 8],
    "thread float a[4] = {1, 2, 3, 4}; thread float* p = a + 1; r = float4(p[0], p[1], p[2], p[-1]);": [2, 3, 4, 1],
    "const half h = 0.1h; bfloat b = bfloat(1.0f); b += 1; r = float4(h > 0.0999h, b, half(3) * 2, -h < 0);": [
        1,
        2,
        6,
        1,
    ],
}


@pytest.mark.parametrize("text", VALUES)
def test_a_word_means_what_the_specification_says(text: str) -> None:
    body = f"  float4 r;\n  {{ {text} }}\n  y[i] = r[i % 4] + 0 * x[i];"
    np.testing.assert_array_equal(computed(body, counting(8)), np.array(VALUES[text] * 2, np.float32))


def test_constants_and_functions_of_the_header_are_seen() -> None:
    header = """
constant float table[4] = {1, 2, 4, 8};
constant constexpr int twice = 2;
template <typename T> METAL_FUNC T looked_up(const device T* p, uint i) { return p[i] * table[i % 4]; }
inline void add(thread float& sum, float x) { sum += x; }
inline float first(threadgroup const float* t) { return t[0]; }
"""
    body = """
      threadgroup float tile[4];
      if (l < 4) tile[l] = l + 10;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      float sum = 0;
      add(sum, looked_up(x, i) * twice);
      y[i] = sum + first(tile);"""
    got = computed(body, counting(8), header=header)
    np.testing.assert_array_equal(got, counting(8) * np.tile([1, 2, 4, 8], 2) * 2 + 10)


def test_arrays_in_threadgroup_memory_are_one_for_all_threads_however_declared() -> None:
    body = """
      constexpr int N = 4;
      threadgroup float a[2 * N * (N + 4)], total; /* threadgroup float none[2]; */
      threadgroup alignas(16) half4 h[64];
      threadgroup float (*rows)[8] = (threadgroup float (*)[8])a;
      a[l] = x[i];
      h[l] = half4(half(x[i]));
      if (l == 0) total = 100;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = rows[l % 8][l / 8] + total + float(h[l ^ 1].w);"""
    at = np.arange(64)
    np.testing.assert_array_equal(computed(body, counting(64)), at % 8 * 8 + at // 8 + 100 + (at ^ 1))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [({"T": "float32", "N": 3, "ADD": True}, 4), ({"T": "float32", "N": 3, "ADD": False}, 3)],
)
def test_template_parameters_reach_the_kernel(template: Template, wanted: int) -> None:
    body = "uint i = thread_position_in_grid.x; T v = T(N); if (ADD) v += x[i]; y[i] = v;"
    kernel = Kernel("t", (Input("x", "T"),), (Output("y", "T"),), body, template=("T", "N", "ADD"))
    made = run(kernel, [np.ones(8, np.float32)], template, (8, 1, 1), (8, 1, 1), [(8,)])
    assert set(made[0]) == {wanted}


def test_shape_strides_and_scalars_are_passed_where_the_body_names_them() -> None:
    body = """
      uint i = thread_position_in_grid.x;
      y[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)] * scale + sizes[1] + x_shape[1];"""
    inputs = (Input("x", "float32"), Input("sizes", "int32", "constant"), Input("scale", "float32", "scalar"))
    kernel = Kernel("shaped", inputs, (Output("y", "float32"),), body)
    given = [counting(12).reshape(3, 4), np.array([5, 6], np.int32), np.array(2, np.float32)]
    made = run(kernel, given, {}, (12, 1, 1), (4, 1, 1), [(12,)])
    np.testing.assert_array_equal(made[0], counting(12) * 2 + 6 + 4)


def test_a_grid_of_three_dimensions_is_walked_whole() -> None:
    body = """
      const uint3 p = thread_position_in_grid, n = threads_per_grid, g = threadgroup_position_in_grid;
      y[(p.z * n.y + p.y) * n.x + p.x] = p.x + 10 * p.y + 100 * p.z + 1000 * (g.x + g.y + g.z) + 0 * x[0];"""
    kernel = Kernel("three", (Input("x", "float32"),), (Output("y", "float32"),), body)
    made = run(kernel, [counting(8)], {}, (5, 3, 2), (2, 2, 2), [(2, 3, 5)])
    z, y, x = np.indices((2, 3, 5))
    np.testing.assert_array_equal(made[0], x + 10 * y + 100 * z + 1000 * (x // 2 + y // 2))


def test_every_attribute_says_where_a_thread_stands() -> None:
    """MSL specification, 5.2.3.6, for a grid that the threadgroups do not fill: 7 x 3 x 2 in groups of 4 x 2 x 2."""
    names = list(ATTRIBUTES)
    wide = [f"y[at * {len(names)} + {k}] = {weighed(name)};" for k, name in enumerate(names)]
    body = "const uint3 p = thread_position_in_grid; const uint at = (p.z * 3 + p.y) * 7 + p.x;\n" + "\n".join(wide)
    kernel = Kernel("places", (Input("x", "float32"),), (Output("y", "float32"),), body + "\n(void)x;")
    made = run(kernel, [counting(8)], {}, (7, 3, 2), (4, 2, 2), [(2, 3, 7, len(names))])[0]
    z, y, x = np.indices((2, 3, 7))
    wide_x, wide_y = np.where(x < 4, 4, 3), np.where(y < 2, 2, 1)
    count = wide_x * wide_y * 2
    index = (z * wide_y + y % 2) * wide_x + x % 4
    said = {
        "dispatch_quadgroups_per_threadgroup": 4,
        "dispatch_simdgroups_per_threadgroup": 1,
        "dispatch_threads_per_threadgroup": 4 + 20 + 200,
        "grid_origin": 0,
        "grid_size": 7 + 30 + 200,
        "quadgroup_index_in_threadgroup": index // 4,
        "quadgroups_per_threadgroup": -(-count // 4),
        "simdgroup_index_in_threadgroup": 0,
        "simdgroups_per_threadgroup": 1,
        "thread_execution_width": 32,
        "thread_index_in_quadgroup": index % 4,
        "thread_index_in_simdgroup": index,
        "thread_index_in_threadgroup": index,
        "thread_position_in_grid": x + 10 * y + 100 * z,
        "thread_position_in_threadgroup": x % 4 + 10 * (y % 2) + 100 * z,
        "threadgroup_position_in_grid": x // 4 + 10 * (y // 2),
        "threadgroups_per_grid": 2 + 20 + 100,
        "threads_per_grid": 7 + 30 + 200,
        "threads_per_simdgroup": 32,
        "threads_per_threadgroup": wide_x + 10 * wide_y + 200,
    }
    for k, name in enumerate(names):
        np.testing.assert_array_equal(made[..., k], np.broadcast_to(said[name], (2, 3, 7)), name)


def weighed(attribute: str) -> str:
    return f"dot(float3({attribute}), float3(1, 10, 100))" if ATTRIBUTES[attribute] == "uint3" else attribute


WRONG = {
    "vectors of two types": "  y[i] = (float4(1) + half4(1)).x;",
    "as_type of another size": "  y[i] = as_type<float>(ushort(1));",
    "a sum of a type without one": "  y[i] = simd_sum(ulong(1));",
    "a name of MLX": "  y[i] = x[i];",
    "a narrow matrix from wide memory": "  simdgroup_half8x8 m; simdgroup_load(m, x, 8);",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_what_metal_refuses_to_compile_is_refused(body: str) -> None:
    header = (
        "template <class T, class U> T ceildiv(T n, U m) { return n / m; }\n" if body == WRONG["a name of MLX"] else ""
    )
    with pytest.raises(CompileError):
        computed(body, counting(64), header=header)


def test_an_array_of_another_dtype_or_space_than_declared_is_refused() -> None:
    kernel = Kernel(
        "typed", (Input("x", "float32"),), (Output("y", "float32"),), "y[thread_position_in_grid.x] = x[0];"
    )
    with pytest.raises(AssertionError, match="x is float32"):
        run(kernel, [np.zeros(8)], {}, (8, 1, 1), (8, 1, 1), [(8,)])
    with pytest.raises(AssertionError, match="x lies in device memory"):
        run(kernel, [counting(4)], {}, (8, 1, 1), (8, 1, 1), [(8,)])
