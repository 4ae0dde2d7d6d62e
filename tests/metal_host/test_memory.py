"""Every access to memory is checked: bounds to the byte, alignment, what was written, what may be."""

import numpy as np
import pytest

from engine.metal.kernel import Input, Kernel, Output
from tests.metal_host.build import CompileError
from tests.metal_host.run import KernelError, run
from tests.metal_host.small import computed, counting

BOUNDS = {
    "one too far": ("  y[i] = x[i + 1];", r"body:2: .*read of 4 bytes at byte 256 of x, which has 256"),
    "one before": ("  y[i] = (x - 1)[i];", r"body:2: .*read of 4 bytes at byte -4 of x"),
    "below zero, unsigned": ("  y[i] = x[i - 1];", r"body:2: .*at byte 17179869180 of x"),
    "far": ("  y[i] = x[i + 1000000];", r"body:2: .*of x, which has 256"),
    "a write": ("  y[i] = 0;\n  y[i + 60] = 0;", r"body:3: .*write of 4 bytes at byte 256 of y|race"),
    "half out": (
        "  y[i] = *(const device uint*)((const device uchar*)x + 253);",
        r"body:2: (misaligned|.*out of bounds)",
    ),
    "an array": ("  float a[4] = {};\n  a[l % 5] = x[i];\n  y[i] = a[0];", r"body:3: out of bounds: index 4"),
    "an array's row": (
        "  threadgroup float t[2][32];\n  t[0][l] = x[i];\n  y[i] = 0;",
        r"body:3: out of bounds: index 32",
    ),
    "past a threadgroup array": (
        "  threadgroup float t[63];\n  threadgroup float* p = t;\n  p[l] = x[i];\n  y[i] = 0;",
        r"body:4: .*write of 4 bytes at byte 252 of threadgroup array t, which has 252",
    ),
    "a struct": (
        "  struct B { half d; uchar q[16]; };\n  const B b = ((const device B*)x)[l / 4];\n  y[i] = b.d + b.q[3];",
        r"body:3: .*read of .* bytes at byte 2\d\d of x, which has 256",
    ),
    "a component": ("  float4 v(x[i]);\n  y[i] = v[l % 5];", r"body:3: out of bounds: component 4"),
}


@pytest.mark.parametrize(("body", "said"), BOUNDS.values(), ids=BOUNDS)
def test_a_planted_wrong_index_is_found_and_its_line_named(body: str, said: str) -> None:
    with pytest.raises(KernelError, match=said):
        computed(body, counting(64))


def test_a_wrong_index_in_a_header_names_the_line_of_the_header() -> None:
    header = "inline float at(const device float* p, uint i) {\n  return p[i + 64];\n}\n"
    with pytest.raises(KernelError, match=r"small header:2: out of bounds: read of 4 bytes at byte 256 of x"):
        computed("  y[i] = at(x, i);", counting(64), header=header)


def test_a_vector_must_lie_on_its_own_size() -> None:
    """MSL specification, 2.2 (tables 2.3 and 2.4): float4 is aligned to 16 bytes, packed_float4 to 4."""
    body = "  const {}float4 v = *(const device {}float4*)(x + l % 4 * 2);\n  y[i] = v[0] + v[3];"
    with pytest.raises(KernelError, match=r"body:2: misaligned: byte 8 of x"):
        computed(body.format("", ""), counting(64))
    got = computed(body.format("packed_", "packed_"), counting(64))
    np.testing.assert_array_equal(got, np.tile([3, 7, 11, 15], 16))


def test_a_word_must_lie_on_its_own_size() -> None:
    kernel = Kernel(
        "words",
        (Input("x", "uint8"),),
        (Output("y", "uint32"),),
        "y[thread_position_in_grid.x] = *(const device uint*)(x + thread_position_in_grid.x * 2);",
    )
    with pytest.raises(KernelError, match=r"words body:1: misaligned: byte 2 of x"):
        run(kernel, [np.zeros(64, np.uint8)], {}, (8, 1, 1), (8, 1, 1), [(8,)])


def test_a_division_by_zero_names_its_line() -> None:
    with pytest.raises(KernelError, match=r"body:2: division of 7 by 0; thread \(3,0,0\)"):
        computed("  y[i] = 7 / (int(x[i]) - 3);", counting(64))


def test_an_input_is_only_read() -> None:
    with pytest.raises(KernelError, match=r"body:2: write to x, which is an input"):
        computed("  const_cast<device float*>(x)[i] = 1;", counting(64))


def test_an_output_is_not_read_before_it_is_written() -> None:
    with pytest.raises(KernelError, match=r"body:2: read of byte 0 of y, which nothing has written"):
        computed("  y[i] += x[i];", counting(64))


def test_an_output_with_a_first_value_may_be_read_and_left() -> None:
    kernel = Kernel(
        "adds", (Input("x", "float32"),), (Output("y", "float32"),), "y[thread_position_in_grid.x] += x[0];"
    )
    made = run(kernel, [counting(8) + 3], {}, (4, 1, 1), (4, 1, 1), [(6,)], init_value=2)
    np.testing.assert_array_equal(made[0], [5, 5, 5, 5, 2, 2])


def test_an_output_left_unwritten_is_an_error_unless_it_may_be() -> None:
    kernel = Kernel(
        "leaves",
        (Input("x", "float32"),),
        (Output("y", "float16"),),
        "if (thread_position_in_grid.x != 5) y[thread_position_in_grid.x] = half(x[thread_position_in_grid.x]);",
    )
    grid = (8, 1, 1)
    with pytest.raises(KernelError, match=r"1 of 8 elements of y unwritten, first \(1, 1\)"):
        run(kernel, [counting(8)], {}, grid, grid, [(2, 4)])
    left = run(kernel, [counting(8)], {}, grid, grid, [(2, 4)], partial=True)[0]
    assert np.isnan(left[1, 1])
    assert np.isfinite(left).sum() == 7


def test_more_memory_of_its_own_than_a_thread_has_here_is_refused() -> None:
    with pytest.raises(CompileError, match="frame size"):
        computed("  float a[40000];\n  for (uint k = 0; k < 40000; k++) a[k] = x[l];\n  y[i] = a[l];", counting(64))


def test_an_error_leaves_the_host_fit_for_the_next_launch() -> None:
    for _ in range(3):
        with pytest.raises(KernelError):
            computed("  y[i] = x[i + 1];", counting(64))
        np.testing.assert_array_equal(computed("  y[i] = x[i];", counting(64)), counting(64))


def test_without_checks_the_results_are_the_same_bits() -> None:
    x = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    body = "uint i = thread_position_in_grid.x; y[i] = simd_sum(exp(x[i]) * 0.1);"
    kernel = Kernel("sums", (Input("x", "float32"),), (Output("y", "float32"),), body)
    checked, plain = (run(kernel, [x], {}, (256, 1, 1), (64, 1, 1), [(256,)], checked=c)[0] for c in (True, False))
    np.testing.assert_array_equal(checked, plain)
