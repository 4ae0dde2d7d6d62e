"""How much prompt a pass may take, so that nobody waits long for it: learnt from the passes before."""

import math

from models.config import ModelConfig

PREFILL = 512  # prompt tokens of a pass at most; activations are laid out for so many
PIECE = 512  # of one on the CPU beside a GPU: each packs all weights anew, and a newcomer waits for its end
ALONE = 1.0  # seconds of a pass that nobody waits for but who comes next, or leaves
STRETCH = 2.0  # a pass with prompts takes about so many times one without, for those who decode
BESIDE = 0.1  # seconds of such a pass as long as no other was seen
FIRST = 64.0  # cost of the first pass, before anything is known of the machine
ROWS = 8  # kernels take rows in strips of so many
DENSER = 5.0  # so many times more operations a second do kernels reach with weights than with keys and values
LEAST, ENOUGH = 2, 3  # prompt tokens beside answers: for fewer, reading all keys and values costs more than computing
STRAIN = 1.5  # so many times what a pass may take it takes now and then, if that makes its tokens ENOUGH
PROBE = 16  # passes with prompts, one after the other, until one without says how fast answers alone are now
_ROUNDING = 1e-6  # tokens; the cost of two is enough for two, whatever the last bits of a root say
_FRESH = 0.3  # the weight of a new pass of answers
_WINDOW = 256.0  # cost of the prompts that the estimate rests on: a machine's speed may change within seconds


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
        self._seconds = self._costs = 0.0  # that prompts of such cost added to their passes, of late
        self._mixed = 0  # passes since the last of answers alone
        self._saved = 0.0  # cost that passes might have taken, and that was not enough for tokens worth the reading

    def cost(self, past: int, tokens: int) -> float:
        """Of so many tokens after `past` others."""
        return tokens * (1 + self._steep * (past + tokens / 2))

    def tokens(self, past: int, cost: float) -> int:
        """How many after `past` others the cost is enough for; one at least."""
        first = 1 + self._steep * past
        count = 2 * cost / (first + math.sqrt(first * first + 2 * self._steep * cost))
        return max(1, int(count + _ROUNDING))

    def budget(self, past: int, answers: int) -> float:
        """The cost of prompts that the next pass may take, the first of which is so far.

        Where that is less than ENOUGH tokens it is saved, for so many in some later pass. 0 is never said for long,
        even if nothing is learnt meanwhile: when there are no pages for answers, prompts must go on.
        """
        if not self._costs:
            return FIRST
        if not answers:
            return ALONE * self._costs / self._seconds
        seconds = (STRETCH - 1) * self._decode if self._decode is not None else BESIDE
        due = seconds * self._costs / self._seconds
        at_once = self.cost(past, min(max(self.tokens(past, STRAIN * due), LEAST), ENOUGH))
        saving = due < at_once
        if saving:
            self._saved = min(self._saved + max(due, at_once / 2), 2 * at_once)  # probes save, too
        if self._mixed >= PROBE or (saving and self._saved < at_once):
            self._mixed = 0
            return 0.0
        if saving:
            self._saved -= at_once
        return max(due, at_once)

    def learn(self, answers: int, cost: float, seconds: float) -> None:
        """A pass took so long. One that has no prompts reads the weights, as does every other."""
        self._mixed = self._mixed + 1 if cost and answers else 0
        if not cost:
            self._decode = seconds if self._decode is None else self._decode + _FRESH * (seconds - self._decode)
            return
        self._seconds += max(seconds - (self._decode or 0.0), seconds / 4)
        self._costs += cost
        excess = max(1.0, self._costs / max(_WINDOW, cost))
        self._seconds, self._costs = self._seconds / excess, self._costs / excess
