"""Quantised keys, values and queries in numpy: what a coded number stands for."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

GROUP = 32
CODEBOOK = np.array([-113, -89, -69, -53, -38, -25, -13, -2, 8, 20, 32, 46, 62, 80, 100, 127])
QUERY_TOP = 127 * 256
BITS = {mx.int8: 8, mx.uint8: 4}  # by the type of the pages


def stored(x: Doubles, dtype: mx.Dtype) -> Doubles:
    """Numbers (..., Dh) as pages of that type hold them."""
    if dtype in BITS:
        groups = [_group(x[..., i : i + GROUP].astype(np.float32), BITS[dtype]) for i in range(0, x.shape[-1], GROUP)]
        return np.concatenate(groups, axis=-1)
    return np.array(mx.array(x.astype(np.float32)).astype(dtype).astype(mx.float32)).astype(np.float64)


def asked(q: Doubles, dtype: mx.Dtype) -> Doubles:
    """Queries (..., Dh) as attention over pages of that type multiplies them."""
    if dtype not in BITS:
        return q
    step = np.abs(q).max(-1, keepdims=True) / QUERY_TOP
    coded: Doubles = np.rint(q / step) * step
    return coded


def _group(x: Floats, bits: int) -> Doubles:
    most: Floats = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)
    step: Floats = np.divide(np.abs(most), np.float32(127), dtype=np.float32)
    scale = _up(step) if bits == 8 else np.sign(most) * _up(step)
    codes = x * (np.float32(1) / scale)
    if bits == 8:
        whole = np.rint(codes)
    else:
        borders = (CODEBOOK[1:] + CODEBOOK[:-1]) / 2
        whole = CODEBOOK[np.searchsorted(borders, codes)].astype(np.float32)
    decoded: Doubles = whole.astype(np.float64) * scale
    return decoded


def _up(steps: Floats) -> Floats:
    """To bfloat16, away from zero."""
    return (((steps.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16) << 16).astype(np.uint32).view(np.float32)
