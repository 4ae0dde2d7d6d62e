"""Rope: by how much a head's pairs turn at each position, and how that is stretched for long contexts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Kind = Literal["none", "linear", "llama3", "yarn"]

_STRIP = 1024  # positions


@dataclass(frozen=True)
class Scaling:
    """How rope's frequencies are stretched for contexts longer than the model was first trained on."""

    kind: Kind = "none"
    factor: float = 1.0
    original: int = 0  # tokens of context before stretching: llama3, yarn
    low: float = 0.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 0.0  # llama3: high_freq_factor; yarn: beta_fast
    magnitude: float = 1.0  # yarn: what cos and sin are multiplied by
    whole: bool = True  # yarn: the bounds of its ramp are rounded outwards to whole pairs


@dataclass(frozen=True)
class Rope:
    """The first `dims` values of a head turn by their position: pairs (2i, 2i+1) if interleaved, else (i, i+dims/2)."""

    theta: float
    dims: int
    interleaved: bool
    scaling: Scaling = Scaling()
    factors: tuple[float, ...] = ()  # divisors of each pair's frequency (the tensor rope_freqs), or none


def rope_table(rope: Rope, positions: int) -> npt.NDArray[np.float32]:
    """Cosines, then sines, of every pair at each position: (positions, dims). Exact angles, rounded once.

    Made strip by strip: the doubles of a long context would take seven times the table.
    """
    turns = _STRETCH[rope.scaling.kind](rope, rope.theta ** -(np.arange(0, rope.dims, 2) / rope.dims))  # (dims/2,)
    if rope.factors:
        turns = turns / np.asarray(rope.factors)
    table = np.empty((positions, rope.dims), np.float32)
    for at in range(0, positions, _STRIP):
        angles = np.outer(np.arange(at, min(at + _STRIP, positions)), turns)  # (strip, dims/2)
        strip = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        table[at : at + _STRIP] = strip * rope.scaling.magnitude
    return table


def _as_trained(rope: Rope, turns: Doubles) -> Doubles:
    return turns


def _linear(rope: Rope, turns: Doubles) -> Doubles:
    return turns / rope.scaling.factor


def _llama3(rope: Rope, turns: Doubles) -> Doubles:
    """Slow pairs are slowed by the factor, fast ones stay, and those between are blended by their wavelength."""
    scaling = rope.scaling
    rounds = scaling.original * turns / (2 * pi)  # full turns within the original context
    fast = np.clip((rounds - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 - fast) * turns / scaling.factor + fast * turns


def _yarn(rope: Rope, turns: Doubles) -> Doubles:
    """As llama3, but the blend is linear in the number of the pair."""
    scaling = rope.scaling

    def pair_that_makes(rounds: float) -> float:
        return rope.dims * log(scaling.original / (rounds * 2 * pi)) / (2 * log(rope.theta))

    first, last = pair_that_makes(scaling.high), pair_that_makes(scaling.low)
    if scaling.whole:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, rope.dims - 1)
    slow: Doubles = np.clip((np.arange(rope.dims // 2) - first) / max(last - first, 0.001), 0, 1)
    return slow * turns / scaling.factor + (1 - slow) * turns


_STRETCH: Mapping[Kind, Callable[[Rope, Doubles], Doubles]] = {
    "none": _as_trained,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
