"""A pass through a layer's attention: heads made ready, rows written into the pool, each class attended its way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.batch import Batch
from engine.metal.attention import PAGE, Ints, Launch, Shape, launched, roomy
from engine.metal.attention_reference import Class
from engine.metal.attention_ways import Attend, Way
from engine.metal.layer import Turns, rope_call, written
from models.ops import HeadNorms

_NAMES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32"}


@dataclass(frozen=True)
class AttentionPass:
    """What all layers of one pass share. Every row is of one class, which is its sequence's."""

    shape: Shape
    turns: Turns
    eps: mx.array
    table: mx.array  # (positions, rope dims) cosines, then sines
    positions: mx.array
    slots: mx.array  # (T,) where each row's key and value go
    attends: tuple[Attend, ...]
    back: mx.array | None  # (T,) where each row of the batch comes out; None where in order
    launch: Launch

    @classmethod
    def of(
        cls,
        shape: Shape,
        turns: Turns,
        eps: float,
        scale: float,
        table: mx.array,
        batch: Batch,
        classes: Mapping[Class, Sequence[int]],  # sequences of the batch
        ways: Mapping[Class, Way],
        launch: Launch = launched,
    ) -> "AttentionPass":
        settled = [(kind, members) for kind, members in classes.items() if members]
        attends = [
            ways[kind].prepared(batch.starts, batch.past, batch.tables, batch.positions, members, scale)
            for kind, members in settled
        ]
        served = [np.arange(batch.starts[b], batch.starts[b + 1]) for _, members in settled for b in members]
        order = np.concatenate(served)
        assert np.array_equal(np.sort(order), np.arange(len(batch.tokens))), "each sequence is of one class"
        in_order = (np.diff(order) == 1).all()
        return cls(
            shape=shape,
            turns=turns,
            eps=mx.array(eps, mx.float32),
            table=table,
            positions=mx.array(roomy(batch.positions)),
            slots=mx.array(_slots(batch)),
            attends=tuple(attends),
            back=None if in_order else mx.array(np.argsort(order).astype(np.int32)),
            launch=launch,
        )

    def attend(self, pages: mx.array, q: mx.array, k: mx.array, v: mx.array, norms: HeadNorms | None) -> mx.array:
        """(T, H Dh) of q (T, H Dh), k and v (T, K Dh), which come as the projections gave them. Keys and values are
        written to `pages`, the layer's array itself: whoever has it has what was written."""
        call = rope_call(self.turns, len(q), _NAMES[q.dtype], self.shape.queries, self.shape.pages)
        weights = (norms.q, norms.k) if norms else (mx.zeros(self.shape.head_dim),) * 2
        queries, kv = self.launch(call, [q, k, v, self.table, self.positions, *weights, self.eps])
        pages = written(pages, self.slots, kv)
        seen = [attend(queries, pages) for attend in self.attends]
        rows = seen[0] if len(seen) == 1 else mx.concatenate(seen)
        return (rows if self.back is None else rows[self.back]).reshape(len(q), -1)


def _slots(batch: Batch) -> Ints:
    sequence = np.repeat(np.arange(len(batch.past)), np.diff(batch.starts))
    found: Ints = (batch.tables[sequence, batch.positions // PAGE] * PAGE + batch.positions % PAGE).astype(np.int32)
    return found
