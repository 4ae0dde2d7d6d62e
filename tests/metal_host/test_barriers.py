"""Barriers and races: who must come, and what a barrier puts in order.

Metal Shading Language Specification (version 4), 6.9.1:
all threads of the threadgroup (SIMD-group) need to execute the barrier
before any goes on; if any thread enters a conditional with a barrier, all must. Table 6.13: mem_none orders nothing,
mem_device and mem_threadgroup order that memory between the threads of the threadgroup or of the SIMD-group.
"""

import numpy as np
import pytest

from engine.metal.kernel import Input, Kernel, Output
from tests.metal_host.run import KernelError, Order, run
from tests.metal_host.small import computed, counting

REVERSED = """
  threadgroup float tile[64];
  tile[l] = x[i];
  {}
  y[i] = tile[63 - l];"""


@pytest.mark.parametrize("reverse", [False, True])
def test_a_barrier_makes_what_was_written_visible_to_all(reverse: bool) -> None:
    body = REVERSED.format("threadgroup_barrier(mem_flags::mem_threadgroup);")
    got = computed(body, counting(128), order=Order(reverse=reverse))
    np.testing.assert_array_equal(got, np.concatenate([counting(64)[::-1], counting(128)[:63:-1]]))


@pytest.mark.parametrize(
    "between",
    [
        "",
        "threadgroup_barrier(mem_flags::mem_none);",
        "threadgroup_barrier(mem_flags::mem_device);",
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_does_not_order_threadgroup_memory_leaves_a_race(between: str, reverse: bool) -> None:
    with pytest.raises(KernelError, match=r"small body:6: (race: read|read of byte .* nothing has written)"):
        computed(REVERSED.format(between), counting(64), order=Order(reverse=reverse))


def test_a_simdgroup_barrier_orders_what_its_own_lanes_did() -> None:
    body = """
      threadgroup float tile[64];
      tile[l] = x[i];
      simdgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = tile[l ^ 31];
      simdgroup_barrier(mem_flags::mem_threadgroup);
      tile[l ^ 1] = 0;"""
    np.testing.assert_array_equal(computed(body, counting(64)), np.arange(64) ^ 31)


RACES = {
    "two writers": "  threadgroup float a;\n  a = x[i];\n  y[i] = 0;",
    "write after a read": """
      threadgroup float tile[64];
      tile[l] = x[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = tile[63 - l];
      tile[l] = 0;""",
    "next round writes too early": """
      threadgroup float part[2];
      y[i] = 0;
      for (uint k = 0; k < 2; k++) {
        const float s = simd_sum(x[i]);
        if (thread_index_in_simdgroup == 0) part[simdgroup_index_in_threadgroup] = s;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[i] += part[0] + part[1];
      }""",
    "bytes of one word": """
      threadgroup uchar tile[128];
      tile[l] = uchar(x[i]);
      *(threadgroup ushort*)(tile + l / 2 * 2) = 0;
      y[i] = 0;""",
    "an output": "  y[i / 2] = x[i];\n  if (l < 32) y[32 + l] = 0;",
}


@pytest.mark.parametrize("body", RACES.values(), ids=RACES)
def test_a_planted_race_is_found_in_either_order(body: str) -> None:
    for reverse in (False, True):
        with pytest.raises(KernelError, match=r"race: (write|read) of byte"):
            computed(body, counting(64), order=Order(reverse=reverse))


def test_bytes_beside_each_other_are_no_race() -> None:
    body = """
      threadgroup uchar tile[64];
      tile[l] = uchar(x[i]);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = tile[l ^ 1];"""
    np.testing.assert_array_equal(computed(body, counting(64)), np.arange(64) ^ 1)


def test_threadgroups_that_write_one_element_race_and_no_barrier_helps() -> None:
    body = "  if (l == 0) y[0] = x[i];\n  threadgroup_barrier(mem_flags::mem_device);\n  if (l > 0 && i < 64) y[i] = 0;"
    with pytest.raises(KernelError, match=r"race: write of byte 0 of y .* written in another threadgroup"):
        computed(body, counting(128), out=64)


def test_device_memory_is_ordered_within_a_threadgroup_by_its_own_flag() -> None:
    body = (
        "  y[i] = x[i];\n  threadgroup_barrier(mem_flags::{});\n  const float other = y[i ^ 1];\n  "
        "threadgroup_barrier(mem_flags::{});\n  y[i] = other;"
    )
    got = computed(body.format("mem_device", "mem_device"), counting(64))
    np.testing.assert_array_equal(got, np.arange(64) ^ 1)
    with pytest.raises(KernelError, match=r"race: write of byte .* of y"):
        computed(body.format("mem_device", "mem_threadgroup"), counting(64))


def test_atomics_may_meet_at_one_place() -> None:
    kernel = Kernel(
        "atomics",
        (Input("x", "uint32"),),
        (Output("y", "uint32"),),
        "atomic_fetch_add_explicit(&y[0], x[thread_position_in_grid.x], memory_order_relaxed);",
        atomic_outputs=True,
    )
    made = run(kernel, [np.arange(100, dtype=np.uint32)], {}, (100, 1, 1), (32, 1, 1), [(1,)], init_value=0)
    assert made[0][0] == 4950


DIVERGENT = {
    "some threads stay away": "  if (l < 40)\n    threadgroup_barrier(mem_flags::mem_none);",
    "a simdgroup stays away": "  if (l < 32)\n    threadgroup_barrier(mem_flags::mem_none);",
    "two places": "  if (l < 32)\n    threadgroup_barrier(mem_flags::mem_none);\n  else\n"
    "    threadgroup_barrier(mem_flags::mem_none);",
    "after the end": "  if (l >= 32)\n    return;\n  threadgroup_barrier(mem_flags::mem_none);",
    "a barrier against a sum": "  if (l < 16)\n    threadgroup_barrier(mem_flags::mem_none);\n  else\n"
    "    simd_sum(x[i]);",
    "more rounds for some": "  for (uint k = 0; k <= l / 32; k++)\n    threadgroup_barrier(mem_flags::mem_none);",
}


@pytest.mark.parametrize("body", DIVERGENT.values(), ids=DIVERGENT)
def test_a_planted_divergent_barrier_is_found_and_its_line_named(body: str) -> None:
    with pytest.raises(KernelError, match=r"divergence within a \w+: .*threadgroup_barrier \(small body:\d"):
        computed(f"  y[i] = x[i];\n{body}", counting(64))


def test_threadgroup_memory_is_fresh_for_each_threadgroup() -> None:
    """4.4: it exists for the lifetime of the threadgroup, and nothing initialises it."""
    body = """
      threadgroup float tile[64];
      if (i < 64) tile[l] = x[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = tile[l];"""
    with pytest.raises(KernelError, match=r"read of byte 0 of threadgroup array tile, which nothing has written"):
        computed(body, counting(128))


def test_more_threadgroup_memory_than_a_gpu_has_is_an_error() -> None:
    with pytest.raises(KernelError, match="32800 bytes of threadgroup memory"):
        computed("  threadgroup float tile[8200];\n  tile[l] = x[i]; y[i] = tile[l];", counting(64))
