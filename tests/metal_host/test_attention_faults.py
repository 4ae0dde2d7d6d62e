"""Planted faults: each of them is found by the host while the kernel runs, or by a law of test_attention."""

from dataclasses import replace

import pytest

from engine.metal import attention
from engine.metal.attention_reference import Class
from engine.metal.kernel import Kernel
from tests.metal_host import test_attention as laws
from tests.metal_host.attention_cases import Case
from tests.metal_host.run import KernelError

SMALL = Case(((300, 6), (0, 1)), group=1, kv_heads=1, queries="float32", out="float32", pages="float32", window=200)
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
IN_PAIRS = "for (int i = 0; i < COUNT / 2; ++i) x[i] = x[i] + x[i + COUNT / 2];\n    return folded<COUNT / 2>(x);"
IN_A_CHAIN = "for (int i = 1; i < COUNT; ++i) x[0] = x[0] + x[i];\n    return x[0];"

# The class, the kernel, what is replaced in its body or header, and by what.
FAULTS = {
    "the neighbour's page": ("decode", "DECODE", "* PAGES + own] :", "* PAGES + (own ^ 1)] :"),
    "weights are overwritten before all are read": ("decode", "DECODE", f"{BARRIER}  // the weights", "// the weights"),
    "a token too late is seen": ("decode", "DECODE", "token < mine_to ? ", "token <= mine_to ? "),
    "a token before the window is seen": ("decode", "DECODE", "token >= mine_from && token", "token"),
    "a value that another row sees is weighed": ("decode", "DECODE", "if (at + u >= from[r] && at + u < to[r])", ""),
    "a sum's order hangs on how many rows there are": ("decode", "DECODE", IN_PAIRS, IN_A_CHAIN),
    "partitions from last to first": (
        "decode",
        "MERGE",
        "at = start + i * step",
        "at = start + (count - 1 - i) * step",
    ),
    "a partition is left out": ("decode", "MERGE", "i < count; ++i) {", "i < count - 1; ++i) {"),
    "partials behind the last are read": ("decode", "MERGE", "i < count; ++i) {", "i <= count; ++i) {"),
    "a tile's page by its number in the pass": ("prefill", "PREFILL", "[1] + tile]", "[1] + tile - first_tile]"),
    "tiles are overwritten before all are read": ("prefill", "PREFILL", f"    {BARRIER}\n  }}\n\n", "  }\n\n"),
    "a token too late is seen in a tile": ("prefill", "PREFILL", "token < after);\n", "token <= after);\n"),
    "what is no number is staged": (
        "prefill",
        "PREFILL",
        "true>(values, TOKEN_STRIDE",
        "false>(values, TOKEN_STRIDE",
    ),
    "the sums are not scaled to a higher maximum": ("prefill", "PREFILL", "[1] * shrink;", "[1];"),
    "rows behind the last are read": ("prefill", "PREFILL", "min(row, rows - 1)", "row"),
}


def found(kind: Class) -> str:
    """The first law that does not hold, by name; nothing if all hold."""
    checks = {
        "exact": lambda: laws.test_equals_exact_arithmetic_within_the_bound(SMALL, kind),
        "alone": lambda: laws.test_a_row_has_the_same_bits_alone_and_in_any_chunk(SMALL, kind),
        "kept apart": lambda: laws.require_kept_apart(replace(SMALL, sequences=((0, 40),)), kind, float("nan")),
        "order": laws.test_partitions_are_merged_in_ascending_order,
    }
    for name, check in checks.items():
        try:
            check()
        except (AssertionError, KernelError):
            return name
    return ""


@pytest.mark.parametrize(("kind", "kernel", "right", "wrong"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_found(
    kind: Class, kernel: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Kernel = getattr(attention, kernel)
    faulty = replace(whole, body=whole.body.replace(right, wrong), header=whole.header.replace(right, wrong))
    assert faulty != whole
    monkeypatch.setattr(attention, kernel, faulty)
    assert found(kind)


def test_without_a_fault_all_laws_hold() -> None:
    assert not found("decode")
    assert not found("prefill")
