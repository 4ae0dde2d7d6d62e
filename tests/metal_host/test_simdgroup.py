"""What 32 lanes do together is what the Metal Shading Language Specification says.

Sections of version 4 by number and sentences by sense: 4.4.1 SIMD-groups, 5.2.3.6 attributes, 6.9.2 SIMD-group
functions (table 6.14 shuffles, 6.15 sums), 6.9.3 quad-groups. Where it leaves something open, the test says what the
host chose.
"""

import numpy as np
import pytest

from tests.metal_host.run import KernelError, Order
from tests.metal_host.small import Array, computed, counting

LANES = np.arange(32)
RANDOM = np.random.default_rng(5).standard_normal(64).astype(np.float32)


def test_lanes_are_counted_within_the_threadgroup_x_fastest() -> None:
    """4.4.1: only the last SIMD-group may be smaller. 5.2.3.6: they are linear and one-dimensional.

    That lane i of the first group is thread i is nowhere said in so many words; MLX and llama.cpp rest on it too.
    """
    lane = computed("  y[i] = thread_index_in_simdgroup;", counting(80), group=80)
    group = computed("  y[i] = simdgroup_index_in_threadgroup;", counting(80), group=80)
    np.testing.assert_array_equal(lane, np.arange(80) % 32)
    np.testing.assert_array_equal(group, np.arange(80) // 32)


def test_an_edge_threadgroup_knows_its_own_size_and_the_size_asked_for() -> None:
    """5.2.3.6: threads_per_threadgroup is the actual size, dispatch_threads_per_threadgroup the one asked for."""
    body = "  y[i] = threads_per_threadgroup.x + 1000 * dispatch_threads_per_threadgroup.x + 0.25f * {};"
    counts = "(simdgroups_per_threadgroup)"
    got = computed(body.format(counts), counting(100), group=64)
    np.testing.assert_array_equal(got, [64064.5] * 64 + [64036.5] * 36)


SHUFFLES = {
    "simd_shuffle(x[i], ushort((l * 7 + 3) % 32))": (LANES * 7 + 3) % 32,
    "simd_shuffle_xor(x[i], 5)": LANES ^ 5,
    "simd_broadcast(x[i], 9)": np.full(32, 9),
    "simd_broadcast_first(x[i])": np.zeros(32, int),
    # "doesn't modify the upper (lower) delta lanes of data because it doesn't wrap"
    "simd_shuffle_down(x[i], 2)": np.where(LANES < 30, LANES + 2, LANES),
    "simd_shuffle_up(x[i], 2)": np.where(LANES >= 2, LANES - 2, LANES),
    "simd_shuffle_rotate_down(x[i], 3)": (LANES + 3) % 32,
    "simd_shuffle_rotate_up(x[i], 3)": (LANES - 3) % 32,
    # The upper (lower) lanes of the filling come in at the lower (upper) end; here it counts from 100.
    "simd_shuffle_and_fill_up(x[i], x[i] + 100, 2)": np.where(LANES >= 2, LANES - 2, LANES + 130),
    "simd_shuffle_and_fill_down(x[i], x[i] + 100, 2)": np.where(LANES < 30, LANES + 2, LANES + 70),
    "quad_shuffle_xor(x[i], 1)": LANES ^ 1,
    "quad_broadcast(x[i], 2)": LANES // 4 * 4 + 2,
}


@pytest.mark.parametrize("call", SHUFFLES)
def test_a_shuffle_takes_the_lane_that_the_specification_names(call: str) -> None:
    got = computed(f"  y[i] = {call};", counting(64))
    one = SHUFFLES[call]
    np.testing.assert_array_equal(got, np.concatenate([one, one + 32]))


def test_a_shuffle_passes_every_type_that_a_kernel_has() -> None:
    body = """
      const half4 h = simd_shuffle_xor(half4(x[i]), 1);
      const uint u = simd_shuffle_xor(uint(x[i]), 1);
      const float2 f = simd_shuffle_xor(float2(x[i], -x[i]), 1);
      y[i] = h.w + u + f.x + f.y;"""
    np.testing.assert_array_equal(computed(body, counting(32)), 2 * (LANES ^ 1))


def in_butterfly_order(x: Array) -> np.float32:
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return np.float32(x[0])


def test_a_sum_adds_in_pairs_at_distance_16_8_4_2_1() -> None:
    """6.9.2 (table 6.15) says only that all active threads get the sum over them: the order is the host's choice."""
    got = computed("  y[i] = simd_sum(x[i]);", RANDOM)
    assert set(got[:32]) == {in_butterfly_order(RANDOM[:32])}
    assert set(got[32:]) == {in_butterfly_order(RANDOM[32:])}


def test_another_order_of_sums_finds_a_result_that_hangs_on_it() -> None:
    body = "  y[i] = simd_sum(x[i]);"
    seen = {computed(body, RANDOM, order=Order(sums=seed))[0] for seed in range(8)}
    assert len(seen) > 1
    exact = counting(64)  # whole numbers: every order gives the same
    assert {computed(body, exact, order=Order(sums=seed))[0] for seed in range(8)} == {np.float32(496)}


def test_reductions_and_prefixes_are_those_of_the_lanes() -> None:
    whole = np.arange(1, 33, dtype=np.float32)
    assert set(computed("  y[i] = simd_max(x[i]);", whole)) == {32}
    assert set(computed("  y[i] = simd_min(-x[i]);", whole)) == {-32}
    assert set(computed("  y[i] = simd_product(x[i] > 5 ? 1 : x[i]);", whole)) == {120}
    assert set(computed("  y[i] = simd_or(uint(x[i]));", whole)) == {63}
    assert set(computed("  y[i] = simd_and(uint(x[i]) | 64);", whole)) == {64}
    np.testing.assert_array_equal(computed("  y[i] = simd_prefix_inclusive_sum(x[i]);", whole), np.cumsum(whole))
    np.testing.assert_array_equal(
        computed("  y[i] = simd_prefix_exclusive_sum(x[i]);", whole), np.cumsum(whole) - whole
    )


def test_a_ballot_has_a_bit_for_each_lane_that_says_yes() -> None:
    body = """
      y[i] = uint(ulong(simd_ballot(x[i] > 27))) >> 28;
      if (simd_any(x[i] == 3) && !simd_all(x[i] == 3)) y[i] += 16;"""
    assert set(computed(body, counting(32))) == {31}


def test_a_smaller_last_simdgroup_sums_the_lanes_that_it_has() -> None:
    got = computed("  y[i] = simd_sum(x[i]);", counting(40), group=40)
    np.testing.assert_array_equal(got, [496] * 32 + [sum(range(32, 40))] * 8)


def test_a_shuffle_from_a_lane_that_is_not_there_is_an_error() -> None:
    """6.9.2: the lane "needs to be a valid SIMD lane ID"."""
    with pytest.raises(KernelError, match=r"body:2: simd_shuffle reads lane 40"):
        computed("  y[i] = simd_shuffle(x[i], 40);", counting(32))
    with pytest.raises(KernelError, match=r"simd_shuffle_xor reads lane 8, which is not there"):
        computed("  y[i] = simd_shuffle_xor(x[i], 8);", counting(40), group=40)


@pytest.mark.parametrize(
    "call", ["simd_broadcast(x[i], l)", "simd_shuffle_down(x[i], l % 2)", "simd_shuffle_xor(x[i], l)"]
)
def test_an_argument_that_must_be_the_same_for_all_lanes_is_held_to_it(call: str) -> None:
    """6.9.2: delta and mask need to be, and a broadcast from different lanes is not defined."""
    with pytest.raises(KernelError, match="different arguments"):
        computed(f"  y[i] = {call};", counting(32))


def test_lanes_at_different_calls_are_an_error_that_names_both_lines() -> None:
    """The specification lets inactive lanes stay away; a kernel of ours that does so does it by mistake."""
    body = "  if (l < 16)\n    y[i] = simd_sum(x[i]);\n  else\n    y[i] = simd_max(x[i]);"
    with pytest.raises(KernelError, match=r"simd_sum \(small body:3\), thread 16 is at simd_max \(small body:5\)"):
        computed(body, counting(32))


def test_a_lane_that_ended_before_a_call_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"thread 0 is at simd_sum \(small body:4\), thread 20 has ended"):
        computed("  y[i] = 0;\n  if (l >= 20) return;\n  y[i] = simd_sum(x[i]);", counting(32))


def test_lanes_that_loop_different_numbers_of_times_are_an_error() -> None:
    with pytest.raises(KernelError, match="divergence within a simdgroup"):
        computed("  y[i] = 0;\n  for (uint k = 0; k < l; k++)\n    y[i] += simd_sum(x[i]);", counting(32))
