"""Ops on the Apple GPU: MLX's own kernels and ours, each where the supervisor chose it.

A pass may hold rows of two classes: of prompts and of answers. Each is computed in its class, so that its bits do not
hang on who else is there. Rows whose logits are wanted go on alone in the last layer; from there on all of them are
multiplied as answers' rows are, whatever they came from.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Ints
from engine.builtin_ops import BuiltinOps, BuiltinPool, back_to_rows
from engine.metal.attention import roomy
from engine.metal.layer import written
from engine.metal.layering import Layering
from engine.metal.paging import Attending, Paging, members_of
from engine.metal.products import Held
from engine.metal.trials import Phase
from models.config import ModelConfig
from models.ops import HeadNorms, Linear

_MLX = Attending()
_PLAIN = Layering()

QKV = tuple[mx.array, mx.array, mx.array]  # each (T, heads Dh)


class MetalOps(BuiltinOps):
    """One pass, as of BuiltinOps. All matrices are of MetalLoader."""

    def __init__(
        self,
        config: ModelConfig,
        pool: BuiltinPool,
        batch: Batch,
        dtype: mx.Dtype,
        attending: Attending = _MLX,
        layering: Layering = _PLAIN,
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
        self._between = _Between(layering, pool, batch, config.eps)
        self._classes = _Classes.of(batch)

    def picked(self, x: mx.array) -> mx.array:
        self._classes = _Classes.of_picked(len(self._picks))
        return super().picked(x)

    def linear(self, x: mx.array, linear: Linear) -> mx.array:
        if len(x) == 0:
            return super().linear(x, linear)
        product = self._classes.times(x, cast(Held, linear.matrix))
        return product if linear.bias is None else product + linear.bias.astype(product.dtype)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, norms: HeadNorms | None) -> mx.array:
        if self._between.rope is None:
            return super().attend(layer, q, k, v, norms)
        pages = self._writing.pages(layer)
        queries, kv = self._between.rope((q, k, v), norms, pages.dtype)
        written(pages, self._slots, kv)
        return self.mixed(layer, queries)

    def _added(self, x: mx.array, product: mx.array) -> mx.array:
        return self._between.added(x, product)

    def _normed(self, x: mx.array, weight: mx.array) -> mx.array:
        made = self._between.normed(x, weight, self.dtype) if len(x) else None
        return super()._normed(x, weight) if made is None else made

    def _gated(self, gate: mx.array, up: mx.array) -> mx.array:
        ours = self._between.gate
        return ours.gated(gate, up) if ours and len(gate) else super()._gated(gate, up)

    def _seen(self, layer: int, q: mx.array) -> list[mx.array]:
        pages = self._writing.pages(layer)
        return [*super()._seen(layer, q), *(paging(q, pages, self._scale) for paging in self._paging)]


class _Between:
    """What a pass has between its products, by the kernels that were chosen.

    A norm of ours adds as well: what is added to the stream waits for the norm that follows. Whoever wants the sum
    otherwise, as the rows that are picked, has MLX make it, with the same bits.
    """

    def __init__(self, layering: Layering, pool: BuiltinPool, batch: Batch, eps: float) -> None:
        self.gate = layering.gate
        self.rope: Callable[[QKV, HeadNorms | None, mx.Dtype], tuple[mx.array, mx.array]] | None = None
        self._norm = layering.norm
        self._eps = mx.array(eps, mx.float32)
        self._waiting: tuple[mx.array, mx.array, mx.array] | None = None  # a sum, which is not computed, and its parts
        self._made: tuple[mx.array, mx.array] | None = None  # the sum as it was named, and as a norm made it
        if layering.rope and layering.turns:
            ready, positions = partial(layering.rope.ready, layering.turns), mx.array(roomy(batch.positions))
            self.rope = lambda qkv, norms, kv: ready(qkv, pool.turns, positions, norms, self._eps, kv)

    def added(self, x: mx.array, product: mx.array) -> mx.array:
        if self._made is not None and self._made[0] is x:
            x = self._made[1]
        total = x + product
        self._waiting = total, x, product
        return total

    def normed(self, x: mx.array, weight: mx.array, dtype: mx.Dtype) -> mx.array | None:
        """None if that is not ours."""
        if self._norm is None:
            return None
        if self._waiting is None or self._waiting[0] is not x:
            return self._norm.normed(x, None, weight, self._eps, dtype)[1]
        total, made = self._norm.normed(*self._waiting[1:], weight, self._eps, dtype)
        self._made, self._waiting = (x, total), None
        return made


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
