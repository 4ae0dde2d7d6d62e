"""Ops on the Apple GPU: MLX's own kernels and ours, each where the supervisor chose it.

A pass may hold rows of two classes: of sequences that bring one token, and of prompts. Each is multiplied in its class,
so that its bits do not hang on who else is there. Rows whose logits are wanted go on alone in the last layer; there
all of them count as answers' rows, whatever they came from.
"""

from typing import cast

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Ints
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.metal.products import Held
from engine.metal.trials import Phase
from models.config import ModelConfig
from models.ops import Linear


class MetalOps(BuiltinOps):
    """One pass, as of BuiltinOps. All matrices are of MetalLoader."""

    def __init__(self, config: ModelConfig, pool: BuiltinPool, batch: Batch, dtype: mx.Dtype) -> None:
        super().__init__(config, pool, batch, dtype)
        self._classes = _Classes.of(batch)
        self._rows = len(batch.tokens)

    def linear(self, x: mx.array, linear: Linear) -> mx.array:
        """If every row is picked, each is the last of its sequence and all of them decode, or the batch is one prompt
        of one token, which decodes as well: so the number of rows tells whether x has been picked from."""
        held = cast(Held, linear.matrix)
        if len(x) == 0:
            return super().linear(x, linear)
        product = self._classes.times(x, held) if len(x) == self._rows else held.times(x, Phase.DECODE)
        return product if linear.bias is None else product + linear.bias.astype(product.dtype)


class _Classes:
    """Which rows of a pass are computed in which class."""

    def __init__(self, decode: Ints, prompt: Ints) -> None:
        self._phase = Phase.PROMPT if len(prompt) else Phase.DECODE
        self._split = None
        if len(decode) and len(prompt):
            back = np.argsort(np.concatenate([decode, prompt])).astype(np.int32)
            self._split = mx.array(decode), mx.array(prompt), mx.array(back)

    @classmethod
    def of(cls, batch: Batch) -> "_Classes":
        lengths = np.diff(batch.starts)
        lone = np.repeat(lengths == 1, lengths)
        return cls(np.flatnonzero(lone).astype(np.int32), np.flatnonzero(~lone).astype(np.int32))

    def times(self, x: mx.array, held: Held) -> mx.array:
        if self._split is None:
            return held.times(x, self._phase)
        decode, prompt, back = self._split
        both = [held.times(x[decode], Phase.DECODE), held.times(x[prompt], Phase.PROMPT)]
        return mx.concatenate(both)[back]
