"""From a row of logits to a token.

The token is a function of the row, the sampling parameters, the tokens so far and their number: law 1. In order:
logit bias and penalties, temperature, top-k, min-p, top-p (of what top-k and min-p left), and one random number.
Logprobs are the model's own, before all of these.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine import exact
from engine.draw import Floats, Reals, Shape, largest, place
from engine.messages import Logprob, Sampled, Sampling
from quant.errors import EngineError

Logits = npt.NDArray[np.float32]


def choose(row: Logits, sampling: Sampling, tokens: Sequence[int], prompt: int) -> Sampled:
    """The token that follows `tokens`, the first `prompt` of which were given."""
    if not np.isfinite(row.max()):
        raise EngineError("the model computed something that is not a number")
    token = _token(row, sampling, tokens, prompt)
    if sampling.logprobs is None:
        return Sampled(token)
    return _with_logprobs(row, token, sampling.logprobs)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for the token of that index: a function of both, with no state to lose."""
    bits = np.random.Philox(key=seed % 2**64, counter=index).random_raw()
    return float(bits >> 11) * 2.0**-53


def _token(row: Logits, s: Sampling, tokens: Sequence[int], prompt: int) -> int:
    logits: Reals = _adjusted(row, s, tokens, prompt) if _adjusts(s) else row
    if s.temperature == 0:
        return int(logits.argmax())
    shape = Shape(s.temperature, s.min_p, s.top_p)
    chance = uniform(s.seed, len(tokens) - prompt)
    if 0 < s.top_k < len(row):
        ids = largest(logits, s.top_k)
        return int(ids[place(logits[ids], shape, chance)])
    return place(logits, shape, chance)


def _adjusts(s: Sampling) -> bool:
    return bool(s.repetition_penalty != 1 or s.frequency_penalty or s.presence_penalty or s.logit_bias)


def _adjusted(row: Logits, s: Sampling, tokens: Sequence[int], prompt: int) -> Floats:
    """Repetition counts the prompt and the answer, frequency and presence the answer alone."""
    logits = row.astype(np.float64)
    if s.repetition_penalty != 1:
        seen = np.unique(np.asarray(tokens, np.int64))
        old = logits[seen]
        logits[seen] = np.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
    ids, counts = np.unique(np.asarray(tokens[prompt:], np.int64), return_counts=True)
    logits[ids] -= counts * s.frequency_penalty + s.presence_penalty
    for token, bias in s.logit_bias.items():
        logits[token] += bias
    return logits


def _with_logprobs(row: Logits, token: int, count: int) -> Sampled:
    logits = row.astype(np.float64)
    highest = float(logits.max())
    offset = highest + exact.log(float(exact.exp(logits - highest).sum()))
    top = largest(row, count) if count > 0 else ()
    alternatives = tuple(Logprob(int(i), float(logits[i]) - offset) for i in top)
    return Sampled(token, float(logits[token]) - offset, alternatives)
