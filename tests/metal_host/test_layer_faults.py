"""Planted faults in the small kernels: each is found by the host while the kernel runs, or by a law of test_layer."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.metal import layer
from engine.metal.kernel import Kernel
from tests.metal_host import test_layer as laws
from tests.metal_host.run import KernelError

HALVES = laws.TURNS["halves, head norms"]


def of_rope() -> None:
    laws.test_queries_and_pages_are_exact_within_the_bound(*HALVES)


def of_codes() -> None:
    laws.test_quantised_pages_hold_the_codes_of_what_wide_ones_hold("a part of 80 turns", "q4")


def of_sums() -> None:
    laws.test_a_residual_is_added_and_normed_at_once("float32", "float16")


def of_norms() -> None:
    laws.test_norms_are_exact_within_the_bound("float32", "float16")


def of_gates() -> None:
    laws.test_gates_are_exact_within_the_bound("float32", "float16")


# The kernel, what is replaced in its body or header, and by what, and the law that is broken.
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
FAULTS = {
    "rope turns backwards": ("ROPE", "-(y * sine)", "y * sine", of_rope),
    "queries get the norm of keys": ("ROPE", "is_query ? q_norm[a] : k_norm[a]", "k_norm[a]", of_rope),
    "values turn too": ("ROPE", "pair < HALF && !is_value", "pair < HALF", of_rope),
    "the sign of the last of the largest": ("ROPE", "min(first, simd", "max(first, simd", of_codes),
    "a row is read before it is whole": ("ROPE", "simdgroup_barrier(mem_flags::mem_threadgroup);", "", of_codes),
    "sums of simdgroups are read too soon": ("ADD_NORM", BARRIER, "", of_sums),
    "the norm is of the last number alone": (
        "ADD_NORM",
        "fma(each[i], each[i], squares)",
        "fma(each[i], each[i], 0)",
        of_sums,
    ),
    "sums of simdgroups are read too soon in a norm": ("NORM", BARRIER, "", of_norms),
    "a norm reads on behind its row": ("NORM", "at < width", "at <= width", of_norms),
    "a norm gets the weight of its neighbour": (
        "NORM",
        "puna::four(weight + at)",
        "puna::four(weight + (at ^ 4))",
        of_norms,
    ),
    "the angles of another row": ("ROPE", "positions[row]", "positions[row + 1]", of_rope),
    "a query is read behind its head": ("ROPE", "float(q[at + b])", "float(q[at + HEAD_DIM + b])", of_rope),
    "a sum goes to another row": ("ADD_NORM", "sum + start + at", "sum + start % width + at", of_sums),
    "a gate reads behind its end": ("GATE", "puna::four(up + at)", "puna::four(up + at + 4)", of_gates),
    "the gate opens the other way": ("GATE", "exponential(-opening", "exponential(opening", of_gates),
}


@pytest.mark.parametrize(("kernel", "right", "wrong", "law"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_found(
    kernel: str, right: str, wrong: str, law: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Kernel = getattr(layer, kernel)
    faulty = replace(whole, body=whole.body.replace(right, wrong), header=whole.header.replace(right, wrong))
    assert faulty != whole
    monkeypatch.setattr(layer, kernel, faulty)
    with pytest.raises((AssertionError, KernelError)):
        law()
