"""exp and log with the same bits on every machine: NumPy's differ by instruction set and libm's by system.

Additions, multiplications, roundings and table look-ups alone, each fixed to the last bit by IEEE 754.
Many times as slow as NumPy's exp.
"""

import math
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PRECISE = Context(prec=40)
_STEPS = 256  # exp(x) = 2**k * 2**(j / _STEPS) * exp(r), with |r| < 0.00136
_LN2 = Decimal(2).ln(_PRECISE)
_TABLE = np.array([float(_PRECISE.power(2, Decimal(j) / _STEPS)) for j in range(_STEPS)])
_PER_UNIT = float(_STEPS / _LN2)
# ln2 / 256 in two parts: the first has 32 bits, so that its product with a number of steps (18 bits) is exact.
_HIGH = math.floor(float(_LN2 / _STEPS) * 2**40) / 2**40
_LOW = float(_LN2 / _STEPS - Decimal(_HIGH))
_LEAST = -700.0  # exp of less is taken for 0; that of this is still a normal number
_STRIP = 4096  # values at a time, whose temporaries stay near the core


def exp(x: Floats) -> Floats:
    """e to the power of each of x (n,), none of which is positive; within 2 ulp."""
    y = np.empty_like(x)
    for start in range(0, len(x), _STRIP):
        y[start : start + _STRIP] = _exp(x[start : start + _STRIP])
    return y


def log(x: float) -> float:
    return float(Decimal(x).ln(_PRECISE))


def _exp(x: Floats) -> Floats:
    inside = np.maximum(x, _LEAST)
    steps = np.rint(inside * _PER_UNIT)
    r = (inside - steps * _HIGH) - steps * _LOW
    whole = steps.astype(np.int64)
    power = ((whole >> 8) + 1023 << 52).view(np.float64)
    root = _TABLE.take(whole & 255)
    series = r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24))))  # the next term is below 2**-54
    values: Floats = (root + root * series) * power
    values[x < _LEAST] = 0
    return values
