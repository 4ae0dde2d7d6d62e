"""Paged attention in float64, row by row, and how far float32 arithmetic may be from it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.metal.attention import PAGE, PARTITION, Shape

Doubles = npt.NDArray[np.float64]
Class = Literal["decode", "prefill"]

UNIT = 2.0**-24  # what a rounding to float32 errs at most, relative
UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# An exponential errs by its polynomial's 2^-23.5, the roundings of n * ln 2 (two, of r <= 0.35) and of the last steps.
EXPONENTIAL = 4 * UNIT
FARTHEST = 87.0  # scores further below the highest count as this far: exp(-87) at most, where nothing would be exact
TINY = 2.0**-125  # below it a product may be taken for zero


@dataclass(frozen=True)
class Reference:
    """Rows (R, H, Dh) and by how much each number may differ."""

    exact: Doubles
    bound: Doubles


def attended(
    shape: Shape, kind: Class, q: Doubles, keys: Doubles, values: Doubles, scale: float, past: int
) -> Reference:
    """Attention of a sequence's rows q (n, H, Dh), which follow `past` tokens, to keys and values (past + n, K, Dh)."""
    rows = []
    for r in range(len(q)):
        seen = slice(shape.first_seen(past + r), past + r + 1)
        rows.append(_row(shape, kind, q[r], keys[seen], values[seen], scale, seen.start))
    return Reference(np.stack([exact for exact, _ in rows]), np.stack([bound for _, bound in rows]))


def _row(
    shape: Shape, kind: Class, q: Doubles, keys: Doubles, values: Doubles, scale: float, first: int
) -> tuple[Doubles, Doubles]:
    """Of one row, q (H, Dh), over the tokens (S, K, Dh) that it sees, the first of them at position `first`."""
    keys, values = (np.repeat(x, shape.group, axis=1) for x in (keys, values))  # (S, H, Dh)
    scores = np.einsum("hd,shd->hs", q, keys) * scale
    away = scores.max(-1, keepdims=True) - scores
    weights = np.exp(-away)
    total = weights.sum(-1, keepdims=True)  # (H, 1)
    exact = np.einsum("hs,shd->hd", weights, values) / total
    erring = _score_error(shape, kind, np.einsum("hd,shd->hs", np.abs(q), np.abs(keys)) * abs(scale))
    weight_error = erring + _weight_error(kind, first, first + len(keys), np.minimum(away, FARTHEST))
    chain = _chain(kind, first, first + len(keys)) * UNIT
    of_sum = np.einsum("hs,shd->hd", weights * (weight_error + chain), np.abs(values))
    of_total = (weights * (weight_error + chain)).sum(-1, keepdims=True) * np.abs(exact)
    flushed = len(keys) * (np.exp(-FARTHEST) + TINY) * (np.abs(values).max(0) + np.abs(exact))
    bound = (of_sum + of_total + flushed) / total + UNIT * np.abs(exact)
    # To first order; 1.05 is for products of errors, all of them far below 2^-5.
    return exact, bound * 1.05 + UNITS[shape.queries] * np.abs(exact) + _least(shape.queries)


def _score_error(shape: Shape, kind: Class, magnitude: Doubles) -> Doubles:
    """q * scale is rounded. Decode: a lane's chain has Dh / 32 to Dh / 20 steps, five sums follow. Prefill: the matrix
    units add the Dh products in an order of their own."""
    lane = 2 if shape.head_dim <= 64 else 4 if shape.head_dim <= 128 else 8
    roundings = 1 + lane + 5 if kind == "decode" else shape.head_dim + 1
    return magnitude * roundings * UNIT


def _weight_error(kind: Class, first: int, end: int, away: Doubles) -> Doubles:
    """Of exp(score - highest), relative. The difference is rounded, then both maxima on the way (of the partition or of
    the tiles so far, then of all) bring an exponential and a product each."""
    steps = 2 if kind == "decode" else _spans(first, end, PAGE)
    return EXPONENTIAL + 2 * away * UNIT + steps * (EXPONENTIAL + 2 * UNIT)


def _chain(kind: Class, first: int, end: int) -> int:
    """Roundings of a sum of weighted values. Decode: 32 tokens, 3 sums of pages, partitions. Prefill: all tokens."""
    return 32 + 8 + _spans(first, end, PARTITION) if kind == "decode" else end - first // PAGE * PAGE + 2


def _spans(first: int, end: int, length: int) -> int:
    return (end - 1) // length - first // length + 1


def _least(dtype: str) -> float:
    """Half the distance of the numbers next to zero."""
    return {"float32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126}[dtype]
