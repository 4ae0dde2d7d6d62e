"""A program: prints a digest of what matmuls of every kind give, to compare between instruction sets."""

import hashlib

import mlx.core as mx
import numpy as np

from engine import _native
from tests.engine.weight_cases import F32, KINDS, weights


def activations(rows: int, cols: int) -> F32:
    """Rows of several sizes; among them zeros, an infinity, a NaN, values whose steps are denormal, and huge ones."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, cols), np.float32) * np.float32(10) ** rng.integers(-3, 4, (rows, 1)).astype(
        np.float32
    )
    for row, value in enumerate((0, np.inf, np.nan, 1e-41, 1e-37, 3e38)[: rows // 2]):
        x[row, 30:60] = np.float32(value)
    if rows > 12:
        x[12] = 0
    return x


def main() -> None:
    for kind in KINDS:
        panels = weights(kind, 37, 768).pack()
        bias = mx.arange(37) / 7
        residual = mx.ones((21, 37)) / 3
        for rows in (1, 3, 8, 21):
            x = mx.array(activations(rows, 768))
            got = [*_native.project(x, [panels, panels], [None, bias])]
            got.append(_native.add_projected(residual[:rows], x, panels, bias))
            digest = hashlib.sha256(b"".join(np.array(y).tobytes() for y in got)).hexdigest()
            print(kind, rows, digest)


if __name__ == "__main__":
    main()
