"""One place among logits, as likely as temperature, min-p and top-p make it: the draw of a token.

The vocabulary is weighed strip by strip and never sorted whole; a weight is exp of a logit's gap to the highest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import _native, exact

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating]
Places = npt.NDArray[np.intp]
Exp = Callable[[Floats], Floats]

# Of the sum of weights. A fast exp (NumPy's, the extension's) errs by a few 2**-53 of a weight, by machine; the sum of
# a million of them, in one order, errs by less than 2**-32. A choice that hangs on less is made again by the exact exp.
MARGIN = 1e-9
_STRIP = 1024
_BLOCK = 64
_BELOW_ONE = 1 - 2.0**-53


@dataclass(frozen=True)
class Shape:
    """How probabilities are made from logits. A temperature is above 0."""

    temperature: float
    min_p: float
    top_p: float


def place(logits: Reals, shape: Shape, chance: float, fast: Exp | None = None) -> int:
    """The place that `chance`, in [0, 1), falls on; the same by every exp that errs by a few ulp."""
    chosen, margin = _Scales(logits, shape, fast).draw(chance)
    return chosen if margin > MARGIN else _Scales(logits, shape, exact.exp).draw(chance)[0]


def largest(values: Reals, count: int) -> Places:
    """Places of the `count` largest values, the largest first, equals in order of place."""
    tops = np.maximum.reduceat(values, np.arange(0, len(values), _BLOCK))
    # So many blocks reach this value, hence at least so many values do.
    enough = np.partition(tops, -count)[-count] if count < len(tops) else -np.inf
    return _in_order(values, np.flatnonzero(values >= enough))[:count]


def _in_order(values: Reals, places: Places) -> Places:
    return places[np.argsort(-values[places], kind="stable")]


class _Scales:
    """Weights of logits; the highest weighs 1. A draw comes with its margin: the part of the sum it was decided by.

    Without an exp the extension's kernels weigh the vocabulary, and NumPy's exp what is left of it.
    """

    def __init__(self, logits: Reals, shape: Shape, exp: Exp | None) -> None:
        self._logits = logits
        self._shape = shape
        self._exp = exp
        self._highest = float(logits.max())
        self._least = exact.log(shape.min_p) if shape.min_p > 0 else -np.inf

    def draw(self, chance: float) -> tuple[int, float]:
        strips = range(0, len(self._logits), _STRIP)
        sums = self._sums(strips)
        if self._shape.top_p < 1:
            places, spare = self._nucleus(self._shape.top_p * float(sums.sum()))
            drawn, margin, _ = _draw(self._weigh(self._logits[places]), chance)
            return int(places[drawn]), min(spare, margin)
        strip, spare, rest = _draw(sums, chance)
        drawn, margin, _ = _draw(self._weigh(self._strip(strips[strip])), rest)
        return strips[strip] + drawn, min(spare, margin * float(sums[strip] / sums.sum()))

    def _sums(self, strips: Sequence[int]) -> Floats:
        """Of the weights of each strip."""
        if self._exp is not None:
            return np.array([self._weigh(self._strip(start)).sum() for start in strips])
        sums = np.empty(len(strips))
        _native.weigh(self._logits, self._highest, self._shape.temperature, self._least, _STRIP, sums)
        return sums

    def _strip(self, start: int) -> Reals:
        return self._logits[start : start + _STRIP]

    def _weigh(self, logits: Reals) -> Floats:
        gaps = logits.astype(np.float64) - self._highest
        with np.errstate(over="ignore"):  # a gap over a temperature near 0 is infinite, and its weight 0
            gaps /= self._shape.temperature
        weights = (self._exp or np.exp)(gaps)
        weights[gaps < self._least] = 0
        return weights

    def _nucleus(self, mass: float) -> tuple[Places, float]:
        """Places of the fewest largest weights that make up the mass, never none; and how clear that is."""
        gap = 4.0
        while True:  # as a rule a nucleus lies close to the highest
            least = self._highest - gap * self._shape.temperature
            places = _in_order(self._logits, np.flatnonzero(self._logits >= least))
            sums = self._weigh(self._logits[places]).cumsum()
            if sums[-1] >= mass or len(places) == len(self._logits):
                last = int(sums.searchsorted(mass))
                return places[: last + 1], _margin(sums, last, mass) / mass if mass > 0 else 1.0
            gap *= 2


def _draw(weights: Floats, chance: float) -> tuple[int, float, float]:
    """A place as likely as its weight, the margin, and the chance that is left over within the place."""
    sums = weights.cumsum()
    goal = chance * sums[-1]
    at = int(sums.searchsorted(goal, side="right"))
    rest = (goal - (sums[at] - weights[at])) / weights[at]
    return at, _margin(sums, at, goal) / float(sums[-1]), min(max(float(rest), 0.0), _BELOW_ONE)


def _margin(sums: Floats, at: int, goal: float) -> float:
    """How far the goal is from the sums on both its sides."""
    return float(np.abs(sums[max(at - 1, 0) : at + 1] - goal).min(initial=np.inf))
