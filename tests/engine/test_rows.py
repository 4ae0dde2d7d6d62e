"""Norm and its sums: exact arithmetic within rounding, whatever the width."""

import mlx.core as mx
import numpy as np
import pytest

from engine import _native


@pytest.mark.parametrize("width", [1, 15, 16, 17, 255, 4096])
def test_norm_equals_exact_arithmetic_to_rounding(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((37, width), np.float32)
    weight = rng.standard_normal(width, np.float32)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6) * weight
    got = np.array(_native.norm(mx.array(x), mx.array(weight), 1e-6))
    # Sixteen chains of width/16 roundings of positive terms, halved by the square root, and four roundings more.
    np.testing.assert_allclose(got, want, rtol=(width / 32 + 4) * 2**-24)


def test_norm_refuses_a_weight_of_another_width() -> None:
    with pytest.raises(ValueError, match="norm"):
        _native.norm(mx.zeros((2, 4)), mx.zeros(5), 1e-6)
