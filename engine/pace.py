"""How much prompt a pass may take, so that nobody waits long for it: learnt from the passes before."""

import math

from models.config import ModelConfig

PREFILL = 512  # prompt tokens of a pass at most; activations are laid out for so many
ALONE = 1.0  # seconds of a pass that nobody waits for but who comes next, or leaves
STRETCH = 3.5  # a pass with prompts takes at most so many times one without, for those who decode
BESIDE = 0.1  # seconds of such a pass as long as no other was seen
FIRST = 64.0  # cost of the first pass, before anything is known of the machine
ROWS = 8  # kernels take rows in strips of so many
DENSER = 5.0  # so many times more operations a second do kernels reach with weights than with keys and values
_FRESH = 0.3  # the weight of a new sample


def steepness(config: ModelConfig) -> float:
    """How much more a token of a prompt costs for each one before it, the first one's cost being 1."""
    shape = config.attention
    heads = shape.heads * shape.head_dim
    weights = config.width * (2 * heads + 2 * shape.kv_heads * shape.head_dim + 3 * config.ffn)
    return DENSER * 2 * heads / weights


class Pace:
    """Costs are in tokens at the start of a prompt; one at position p costs 1 + steep * p, for its attention."""

    def __init__(self, steep: float) -> None:
        self._steep = steep
        self._decode: float | None = None  # seconds of a pass of answers alone
        self._unit: float | None = None  # seconds that a prompt's cost of 1 adds to a pass

    def cost(self, past: int, tokens: int) -> float:
        """Of so many tokens after `past` others."""
        return tokens * (1 + self._steep * (past + tokens / 2))

    def tokens(self, past: int, cost: float) -> int:
        """How many after `past` others the cost is enough for; one at least."""
        first, steep = 1 + self._steep * past, self._steep
        count = (math.sqrt(first * first + 2 * steep * cost) - first) / steep if steep else cost
        return max(1, int(count))

    def budget(self, decoding: int) -> float:
        """The cost of prompts that the next pass may take."""
        if self._unit is None:
            return FIRST
        seconds = ALONE
        if decoding:
            seconds = (STRETCH - 1) * self._decode if self._decode is not None else BESIDE
        return seconds / self._unit

    def learn(self, decoding: int, cost: float, seconds: float) -> None:
        """A pass took so long."""
        if cost == 0:
            self._decode = _mean(self._decode, seconds)
            return
        rest = seconds - (self._decode or 0.0) if decoding else seconds
        self._unit = _mean(self._unit, max(rest, seconds / 10) / cost)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _FRESH * (new - old)
