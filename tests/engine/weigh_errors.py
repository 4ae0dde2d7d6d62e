"""A program: the largest error of the kernels' sums of weights, in parts of the sum, over sizes, types and shapes."""

import itertools
import math

import numpy as np
import numpy.typing as npt

from engine import _native

STRIP = 1024


def error(count: int, kind: npt.DTypeLike, temperature: float, cut: bool) -> float:
    """Beside math's exp, added exactly. With a cut, one logit lies on it and stays."""
    rng = np.random.default_rng(count)
    logits = (rng.standard_normal(count) * 4).astype(kind)
    logits[rng.integers(0, count, count // 8)] = -np.inf
    logits[rng.integers(count)] = highest = 20.0
    exponents = [(float(logit) - highest) / temperature for logit in logits]
    least = sorted(exponents)[-max(1, count // 16)] if cut else -math.inf
    sums = np.full(-(-count // STRIP), np.nan)
    _native.weigh(logits, highest, temperature, least, STRIP, sums)
    weights = [math.exp(exponent) if exponent >= least else 0.0 for exponent in exponents]
    wanted = [math.fsum(weights[at : at + STRIP]) for at in range(0, count, STRIP)]
    errors = np.abs(sums - wanted) / [want or 1.0 for want in wanted]
    return float(errors.max())


if __name__ == "__main__":
    sizes = (1, 2, 31, 32, 33, 1000, 1024, 1025, 5000)
    cases = itertools.product(sizes, ("f4", "f8"), (0.05, 0.7, 1.0, 3.0, 1e-310), (False, True))
    print(max(error(*case) for case in cases))
