"""Norms, gates and rope in float64, and how far float32 arithmetic may be from them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.metal.attention_reference import EXPONENTIAL, UNIT, UNITS, Reference
from engine.metal.layer import Turns, threads

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

ROOT = 3 * UNIT  # of rsqrt 2 ulp, as Metal's specification has it with fast math, and of its argument's last sum


@dataclass(frozen=True)
class Ready:
    queries: Reference  # (T, H, Dh)
    kv: Reference  # (T, 2, K, Dh)


def normed(x: Doubles, weight: Doubles, eps: float, y: str) -> Reference:
    """Rows (T, D). Chains of D / threads squares, five sums over lanes, then simdgroups; squares are positive, so the
    roundings are relative to the sum, and its root halves them."""
    count = threads(x.shape[1])
    roundings = -(-x.shape[1] // (4 * count)) * 4 + 5 + count // 32
    exact = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return Reference(exact, _rounded(exact, roundings / 2 * UNIT + ROOT + 3 * UNIT, y))


def gated(gate: Doubles, up: Doubles, y: str) -> Reference:
    """The exponential, a sum, a quotient, a product. Below -88 the exponential stays what it is there."""
    exact = gate / (1 + np.exp(np.minimum(-gate, 88))) * up
    return Reference(exact, _rounded(exact, EXPONENTIAL + 4 * UNIT, y))


def ready(
    turns: Turns,
    q: Doubles,  # (T, H Dh)
    k: Doubles,  # (T, K Dh)
    v: Doubles,
    table: Doubles,  # (positions, rope dims)
    positions: Ints,  # (T,)
    norms: tuple[Doubles, Doubles],
    eps: float,
    queries: str,
    pages: str,
) -> Ready:
    heads_q, heads_k, heads_v = (x.reshape(len(x), -1, turns.head_dim) for x in (q, k, v))
    unit = 2 * UNIT
    if turns.head_norms:
        heads_q, heads_k = (_unit_mean(x, eps) * weight for x, weight in zip((heads_q, heads_k), norms, strict=True))
        unit += (turns.head_dim / 64 + 1 + 5) * UNIT + ROOT + 3 * UNIT
    half = turns.rope_dims // 2
    cos, sin = table[positions, None, :half], table[positions, None, half:]
    q_turned, q_size = _turned(turns, heads_q, cos, sin)
    k_turned, k_size = _turned(turns, heads_k, cos, sin)
    return Ready(
        Reference(q_turned, _within(q_turned, q_size * unit, queries)),
        Reference(
            np.stack([k_turned, heads_v], axis=1),
            np.stack([_within(k_turned, k_size * unit, pages), _within(heads_v, heads_v * 0, pages)], axis=1),
        ),
    )


def _unit_mean(x: Doubles, eps: float) -> Doubles:
    found: Doubles = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return found


def _turned(turns: Turns, x: Doubles, cos: Doubles, sin: Doubles) -> tuple[Doubles, Doubles]:
    """x (T, H, Dh) turned, and the sum of the magnitudes that each number was made of."""
    half = turns.rope_dims // 2
    first = np.arange(half) * 2 if turns.interleaved else np.arange(half)
    second = first + (1 if turns.interleaved else half)
    y, size = x.copy(), np.abs(x)
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    size[..., first] = np.abs(x[..., first] * cos) + np.abs(x[..., second] * sin)
    size[..., second] = np.abs(x[..., second] * cos) + np.abs(x[..., first] * sin)
    return y, size


def _rounded(exact: Doubles, relative: float, dtype: str) -> Doubles:
    return _within(exact, relative * 1.05 * np.abs(exact), dtype)


def _within(exact: Doubles, error: Doubles, dtype: str) -> Doubles:
    """An error in float32, and then the rounding to what is stored."""
    least = {"float32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126}[dtype]
    bound: Doubles = error * 1.05 + UNITS[dtype] * np.abs(exact) * 1.05 * (dtype != "float32") + least
    return bound
