"""Paged attention on the Apple GPU, run on the host: equal to float64 within its bound, and the same bits in any batch."""

import numpy as np
import pytest

from engine.metal.attention_numbers import widened
from engine.metal.attention_reference import Class
from tests.metal_host.attention_cases import Case, World

CASES = {
    "ragged lengths over partitions": Case(((300, 1), (0, 1), (255, 1), (256, 1), (31, 1))),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
both = pytest.mark.parametrize("kind", ["decode", "prefill"])


@both
@every_case
def test_equals_exact_arithmetic_within_the_bound(case: Case, kind: Class) -> None:
    world = World(case)
    for got, span in zip(world.attend(kind, world.spans()), world.spans(), strict=True):
        want = world.exact(kind, *span)
        np.testing.assert_array_less(np.abs(widened(got, case.queries) - want.exact), want.bound)
