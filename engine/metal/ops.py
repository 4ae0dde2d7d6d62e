"""Ops on the Apple GPU: MLX's own kernels and ours, each where the supervisor chose it.

A pass may hold rows of two classes: of prompts and of answers. Each is computed in its class, so that its bits do not
hang on who else is there. Rows whose logits are wanted go on alone in the last layer; from there on all of them are
multiplied as answers' rows are, whatever they came from.
"""

from typing import cast

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Ints
from engine.builtin_ops import BuiltinOps, BuiltinPool, back_to_rows
from engine.metal.paging import Attending, Paging, members_of
from engine.metal.products import Held
from engine.metal.trials import Phase
from models.config import ModelConfig
from models.ops import Linear

_MLX = Attending()


class MetalOps(BuiltinOps):
    """One pass, as of BuiltinOps. All matrices are of MetalLoader."""

    def __init__(
        self, config: ModelConfig, pool: BuiltinPool, batch: Batch, dtype: mx.Dtype, attending: Attending = _MLX
    ) -> None:
        members = members_of(batch)
        left = [some for phase, some in members.items() if attending.of(phase) is None]
        super().__init__(config, pool, batch, dtype, np.sort(np.concatenate([np.empty(0, np.int32), *left])))
        self._paging = [
            Paging.of(phase, shape, batch, some.tolist(), attending.launch)
            for phase, some in members.items()
            if (shape := attending.of(phase)) and len(some)
        ]
        gathered = [np.array(group.rows).reshape(-1) for group in self._groups]
        self._back = back_to_rows([*gathered, *(paging.rows for paging in self._paging)])
        self._scale = mx.array(self.shape.scale, mx.float32)
        self._classes = _Classes.of(batch)

    def picked(self, x: mx.array) -> mx.array:
        self._classes = _Classes.of_picked(len(self._picks))
        return super().picked(x)

    def linear(self, x: mx.array, linear: Linear) -> mx.array:
        if len(x) == 0:
            return super().linear(x, linear)
        product = self._classes.times(x, cast(Held, linear.matrix))
        return product if linear.bias is None else product + linear.bias.astype(product.dtype)

    def _seen(self, layer: int, q: mx.array) -> list[mx.array]:
        pages = self._writing.pages(layer)
        return [*super()._seen(layer, q), *(paging(q, pages, self._scale) for paging in self._paging)]


class _Classes:
    """Which of the rows that a pass goes on with are multiplied in which class."""

    def __init__(self, decode: Ints, prompt: Ints) -> None:
        self._phase = Phase.PROMPT if len(prompt) else Phase.DECODE
        self._split = None
        if len(decode) and len(prompt):
            back = np.argsort(np.concatenate([decode, prompt])).astype(np.int32)
            self._split = mx.array(decode), mx.array(prompt), mx.array(back)

    @classmethod
    def of(cls, batch: Batch) -> "_Classes":
        decodes = np.repeat(batch.decodes, np.diff(batch.starts))
        return cls(np.flatnonzero(decodes).astype(np.int32), np.flatnonzero(~decodes).astype(np.int32))

    @classmethod
    def of_picked(cls, rows: int) -> "_Classes":
        return cls(np.arange(rows, dtype=np.int32), np.empty(0, np.int32))

    def times(self, x: mx.array, held: Held) -> mx.array:
        if self._split is None:
            return held.times(x, self._phase)
        decode, prompt, back = self._split
        both = [held.times(x[decode], Phase.DECODE), held.times(x[prompt], Phase.PROMPT)]
        return mx.concatenate(both)[back]
