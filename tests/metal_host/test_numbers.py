"""Numbers of the host are those of the Metal language: each operation on half and bfloat rounded once, to nearest even.

Metal Shading Language Specification (version 4), 2.1 (half is IEEE 754 binary16, bfloat a truncated float), 8.4 (tables
8.1, 8.3 and 8.4: sums, products and quotients correctly rounded) and 8.6 (from float to half or bfloat to nearest even;
back nothing is lost). By 8.2 an operation may round to nearest even or toward zero: nearest is the host's assumption,
and that of the bounds. Were a GPU to round toward zero, the supervisor's check on it would say so.

numpy's float16 rounds the same way and is the reference for half; bfloat's is written out in integers. All numbers of
16 bits are tried where there is one operand.
"""

import numpy as np
import pytest

from engine.metal.kernel import Input, Kernel, Output
from tests.metal_host.run import Order, run
from tests.metal_host.small import Array, computed, counting

ALL = np.arange(1 << 16, dtype=np.uint16)
HALVES = ALL.view(np.float16)
SEED = np.random.default_rng(16)


def widened(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def brain(x: Array) -> Array:
    """The nearest bfloat's bits, to even; NaN stays one."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def same(got: Array, wanted: Array) -> None:
    nan = np.isnan(wanted)
    assert (np.isnan(got) == nan).all()
    np.testing.assert_array_equal(got[~nan].view(np.uint16), wanted[~nan].view(np.uint16))


def of_two(body: str, a: Array, b: Array, dtype: str) -> Array:
    kernel = Kernel(
        "two",
        (Input("a", dtype), Input("b", dtype)),
        (Output("y", dtype),),
        f"const uint i = thread_position_in_grid.x; {body}",
    )
    return run(kernel, [a, b], {}, (a.size, 1, 1), (1024, 1, 1), [a.shape], checked=False)[0]


def test_a_float_becomes_the_nearest_half() -> None:
    """Every half, every point midway between two, and a float on each side of that."""
    finite = np.sort(HALVES[np.isfinite(HALVES)]).astype(np.float32)
    midway = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([finite, midway, np.nextafter(midway, 9e9), np.nextafter(midway, -9e9), [65519.9, 65520, 7e8]])
    kernel = Kernel(
        "half", (Input("x", "float32"),), (Output("y", "float16"),), "uint i = thread_position_in_grid.x; y[i] = x[i];"
    )
    x = x.astype(np.float32)
    made = run(kernel, [x], {}, (x.size, 1, 1), (1024, 1, 1), [x.shape], checked=False)[0]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(made.view(np.uint16), x.astype(np.float16).view(np.uint16))


def test_a_half_becomes_the_same_float() -> None:
    got = computed("  y[i] = float(x[i]);", HALVES, group=1024)
    np.testing.assert_array_equal(got, HALVES.astype(np.float32))


@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_an_operation_on_halves_rounds_once(op: str) -> None:
    a, b = (SEED.permutation(HALVES) for _ in range(2))
    with np.errstate(all="ignore"):
        wanted = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[op]
    same(of_two(f"y[i] = a[i] {op} b[i];", a, b, "float16"), wanted)


def test_operations_on_halves_round_after_each_not_at_the_end() -> None:
    a, b = (SEED.standard_normal(4096).astype(np.float16) for _ in range(2))
    np.testing.assert_array_equal(of_two("y[i] = a[i] * b[i] + a[i];", a, b, "float16"), a * b + a)


def test_fma_of_halves_rounds_once() -> None:
    """Exactly: a * b + c of three halves is a whole number of 2^-48, held in Python's integers."""
    a, b = (SEED.permutation(HALVES[np.isfinite(HALVES)])[:4096] for _ in range(2))
    exact = [
        int(float(p) * 2.0**24) * int(float(q) * 2.0**24) + int(float(p) * 2.0**24) * 2**24
        for p, q in zip(a, b, strict=True)
    ]
    with np.errstate(over="ignore"):
        wanted = np.array([rounded_to_half(n) for n in exact], np.float16)
    got = of_two("y[i] = fma(a[i], b[i], a[i]);", a, b, "float16")
    np.testing.assert_array_equal(got, wanted)


def test_fma_of_halves_sees_what_a_float_would_have_lost() -> None:
    """48 * 683 and 112 * 293 lie midway between two halves; 2^-24 decides, and a float has no digit for it."""
    a, b = np.array([[48, 112] * 4, [683, 293] * 4], np.float16)
    got = of_two("y[i] = fma(a[i], b[i], half(i % 2 ? -0x1p-24f : 0x1p-24f));", a, b, "float16")
    np.testing.assert_array_equal(got, [32800] * 8)


def rounded_to_half(n: int) -> float:
    """n * 2^-48 to the nearest half, ties to even."""
    sign, n = (-1, -n) if n < 0 else (1, n)
    step = max(n.bit_length() - 11, 24)
    whole, rest = divmod(n, 1 << step)
    whole += rest * 2 > 1 << step or (rest * 2 == 1 << step and whole & 1)
    return sign * float(whole * 2.0 ** (step - 48))


def test_a_float_becomes_the_nearest_bfloat() -> None:
    x = SEED.integers(0, 1 << 32, 60000, dtype=np.uint32).view(np.float32)
    x[:1000] = (x[:1000].view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)  # ties
    kernel = Kernel(
        "brain",
        (Input("x", "float32"),),
        (Output("y", "bfloat16"),),
        "uint i = thread_position_in_grid.x; y[i] = bfloat(x[i]);",
    )
    made = run(kernel, [x], {}, (x.size, 1, 1), (1024, 1, 1), [x.shape], checked=False)[0]
    same(widened(made), widened(brain(x)))


@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_an_operation_on_bfloats_rounds_once(op: str) -> None:
    a, b = (SEED.permutation(ALL) for _ in range(2))
    with np.errstate(all="ignore"):
        p, q = (widened(x).astype(np.float64) for x in (a, b))
        exact = {"+": p + q, "-": p - q, "*": p * q, "/": p / q}[op]
        wanted = widened(brain(to_odd(exact)))
    same(widened(of_two(f"y[i] = a[i] {op} b[i];", a, b, "bfloat16")), wanted)


def to_odd(x: Array) -> Array:
    """The float that a later rounding to bfloat sees as it would see x."""
    near = x.astype(np.float32)
    even = (near.view(np.uint32) & 1) == 0
    off = np.isfinite(near) & (near.astype(np.float64) != x) & even
    up = np.abs(near.astype(np.float64)) < np.abs(x)
    step = np.where(up, 1, -1).astype(np.int32)
    return np.where(off, (near.view(np.int32) + step).view(np.float32), near)


def test_a_half_and_a_float_make_a_float_a_half_and_an_integer_a_half() -> None:
    body = "  const half h = 2049.0h; y[i] = i == 0 ? float(h + 1) : h + 1.0f;"
    np.testing.assert_array_equal(computed(body, counting(8)), [2048] + [2049] * 7)


def test_a_constant_without_a_suffix_is_a_float() -> None:
    """MSL specification, 2.1: there is no double."""
    got = computed("  y[i] = sizeof(0.1) == 4 ? x[i] * 0.1 : 0;", counting(100))
    np.testing.assert_array_equal(got, counting(100) * np.float32(0.1))


def test_contraction_is_found_by_fusing_and_stopped_by_the_pragma() -> None:
    """On a GPU a * b + c may round once, even in the mode "safe", which MLX compiles in: only the pragma or an explicit
    fma settles it (1.6.3, where the pragma is)."""
    x = SEED.standard_normal(1024).astype(np.float32)
    body = "  const float p = x[i];\n  y[i] = p * p + 1;"
    apart, fused = x * x + np.float32(1), (x.astype(np.float64) ** 2 + 1).astype(np.float32)
    assert (apart != fused).any()
    np.testing.assert_array_equal(computed(body, x), apart)
    np.testing.assert_array_equal(computed(body, x, order=Order(contract=True)), fused)
    off = "#pragma METAL fp contract(off)\n"
    np.testing.assert_array_equal(computed(body, x, header=off, order=Order(contract=True)), apart)
    np.testing.assert_array_equal(computed("  y[i] = fma(x[i], x[i], 1.0f);", x), fused)


def test_subnormal_floats_are_zero_when_asked_as_on_a_gpu() -> None:
    """MSL specification, 8.1: subnormal numbers of every type may be flushed to zero by arithmetic; 8.6: a conversion
    from float to half makes them. So a kernel may hold them, and `flush` takes them for zero when it computes."""
    x = np.full(32, 2.0**-130, np.float32)
    assert set(computed("  y[i] = x[i] * 0x1p20f;", x)) == {np.float32(2.0**-110)}
    assert set(computed("  y[i] = x[i] * 0x1p20f;", x, order=Order(flush=True))) == {0}
    tiny = np.full(32, 2.0**-24, np.float16)
    for body, kept in {
        "  y[i] = x[i] + x[i];": 2.0**-23,
        "  y[i] = float(fma(x[i], 4.0h, x[i]));": 5 * 2.0**-24,
        "  y[i] = half(0x1p-14f) * 0.5h;": 2.0**-15,
    }.items():
        assert set(computed(body, tiny)) == {np.float32(kept)}
        assert set(computed(body, tiny, order=Order(flush=True))) == {0}
    for body in ("  y[i] = float(x[i]);", "  y[i] = half(float(x[i]));"):
        assert set(computed(body, tiny, order=Order(flush=True))) == {np.float32(2.0**-24)}


def test_functions_are_the_nearest_float_or_as_far_off_as_asked() -> None:
    """MSL specification, 8.4 (table 8.1): exp is right to 4 units of the last place, not to the last bit."""
    x = SEED.uniform(-9, 9, 4096).astype(np.float32)
    nearest = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(computed("  y[i] = exp(x[i]);", x), nearest)
    off = computed("  y[i] = exp(x[i]);", x, order=Order(ulps=3)).view(np.int32) - nearest.view(np.int32)
    assert set(off) == set(range(-3, 4))
    again = computed("  y[i] = exp(x[4095 - i]);", x, order=Order(ulps=3))[::-1]
    np.testing.assert_array_equal(again.view(np.int32) - nearest.view(np.int32), off)
    special = np.array([-np.inf, np.inf, np.nan, -1000] * 2, np.float32)
    np.testing.assert_array_equal(
        computed("  y[i] = exp(x[i]);", special, order=Order(ulps=3)), [0, np.inf, np.nan, 0] * 2
    )
