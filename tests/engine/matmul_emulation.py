"""The arithmetic of the matmul kernels in numpy, step by step as engine/cpu/matmul.h states it."""

import numpy as np
import numpy.typing as npt

from quant.formats import AFFINE, FORMATS
from tests.engine.weight_cases import F32, Weights

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """float32(a * b + c), rounded once: the product is exact in float64, the sum is rounded to odd there."""
    product = np.multiply(a, b, dtype=np.float64)
    total: F64 = product + np.asarray(c, np.float64)
    moved = total - product
    error = (product - (total - moved)) + (np.asarray(c, np.float64) - moved)
    even = total.view(np.int64) % 2 == 0
    odd = np.where(even & (error != 0), np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def quantised(x: F32, block: int) -> tuple[I64, F32]:
    """Integers (T, K / block, block) and scales (T, K / block) of finite activations that are not all tiny."""
    blocks = x.reshape(len(x), -1, block)
    q, scales = _in_steps(blocks, 127)
    if block == 32:
        least = _squared_error(blocks, q, scales)
        for levels in (126, 125):
            tried_q, tried_scales = _in_steps(blocks, levels)
            found = _squared_error(blocks, tried_q, tried_scales)
            better = found < least
            q, scales = np.where(better[..., None], tried_q, q), np.where(better, tried_scales, scales)
            least = np.where(better, found, least)
    return q, scales


def _in_steps(blocks: F32, levels: int) -> tuple[I64, F32]:
    amax = np.abs(blocks).max(-1)
    inverse = np.divide(np.float32(levels), amax, out=np.zeros_like(amax), where=amax > 0)
    return np.rint(blocks * inverse[..., None]).astype(np.int64), amax / np.float32(levels)


def _squared_error(blocks: F32, q: I64, scales: F32) -> F32:
    """In 16 lanes, folded 8, 4, 2, 1."""
    error = fma(-q, scales[..., None], blocks)
    lanes = np.zeros((*error.shape[:-1], 16), np.float32)
    for i in range(0, error.shape[-1], 16):
        lanes = fma(error[..., i : i + 16], error[..., i : i + 16], lanes)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def dense(x: F32, w: Weights) -> F32:
    acc = np.zeros((len(x), len(w.decoded)), np.float32)
    for k in range(x.shape[1]):
        acc = fma(x[:, k, None], w.decoded[None, :, k], acc)
    return acc


def q8_0(x: F32, w: Weights) -> F32:
    blocks = np.frombuffer(w.planes[0].data, FORMATS["q8_0"].record).reshape(len(w.decoded), -1)
    return _grouped(x, blocks["qs"].astype(np.int64), blocks["d"].astype(np.float32), None)


def affine4(x: F32, w: Weights) -> F32:
    """For scales in float32 and groups of 64."""
    rows, cols = w.decoded.shape
    packed = np.frombuffer(w.planes[0].data, np.uint8)
    codes = np.stack([packed & 15, packed >> 4], -1).astype(np.int64).reshape(rows, cols // 32, 32)
    per_group = AFFINE[w.kind.name].group // 32
    scales, biases = (np.frombuffer(p.data, np.float32).reshape(rows, -1).repeat(per_group, 1) for p in w.planes[1:])
    return _grouped(x, codes, scales, biases)


def _grouped(x: F32, codes: I64, scales: F32, biases: F32 | None) -> F32:
    """Codes (N, G, 32), scales and biases (N, G)."""
    q, steps = quantised(x, 32)
    acc = np.zeros((len(x), len(codes)), np.float32)
    for g in range(codes.shape[1]):
        isum = (q[:, g] @ codes[:, g].T).astype(np.float32)
        acc = fma(isum, scales[None, :, g] * steps[:, g, None], acc)
        if biases is not None:
            total = steps[:, g] * q[:, g].sum(-1).astype(np.float32)
            acc = fma(biases[None, :, g], total[:, None], acc)
    return acc


def q4_k(x: F32, w: Weights) -> F32:
    blocks = np.frombuffer(w.planes[0].data, FORMATS["q4_k"].record).reshape(len(w.decoded), -1)
    s = blocks["scales"].astype(np.int64)
    high = s[..., 8:12]
    scales = np.concatenate([s[..., :4] & 63, high & 15 | s[..., :4] >> 2 & 48], -1)  # (N, K / 256, 8)
    minima = np.concatenate([s[..., 4:8] & 63, high >> 4 | s[..., 4:8] >> 2 & 48], -1)
    runs = blocks["qs"].reshape(*blocks.shape, 4, 32)
    codes = np.stack([runs & 15, runs >> 4], -2).astype(np.int64).reshape(*blocks.shape, 8, 32)
    d, dmin = blocks["d"].astype(np.float32), blocks["dmin"].astype(np.float32)
    q, steps = quantised(x, 128)
    groups = q.reshape(len(x), -1, 4, 32)  # (T, K / 128, 4, 32)
    acc = np.zeros((len(x), len(codes)), np.float32)
    for h in range(steps.shape[1]):
        part = (slice(None), h // 2, slice(h % 2 * 4, h % 2 * 4 + 4))
        isum = np.einsum("tgk,ngk,ng->tn", groups[:, h], codes[part], scales[part]).astype(np.float32)
        msum = np.einsum("tgk,ng->tn", groups[:, h], minima[part]).astype(np.float32)
        t = fma(-dmin[None, :, h // 2], msum, d[None, :, h // 2] * isum)
        acc = fma(steps[:, h, None], t, acc)
    return acc
