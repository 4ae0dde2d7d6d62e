"""A pass's attention straight from the page tables, on the Apple GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Ints
from engine.metal.attention import (
    PAGES,
    Call,
    DecodeWork,
    Layout,
    Paged,
    PrefillWork,
    Shape,
    decode_call,
    merge_call,
    prefill_call,
    roomy,
)
from engine.metal.trials import Launch, Phase, launched
from models.config import AttentionShape


@dataclass(frozen=True)
class Attending:
    """What attention runs with, settled at load. None is MLX's kernels."""

    decode: Shape | None = None
    prompt: Shape | None = None
    launch: Launch = launched

    def of(self, phase: Phase) -> Shape | None:
        return self.decode if phase is Phase.DECODE else self.prompt


def shape_of(attention: AttentionShape, queries: str, pages: str) -> Shape:
    """As pools of BuiltinPool have it."""
    kept = PAGES[pages]
    return Shape(
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        window=attention.window,
        queries=queries,
        pages=kept,
        layout=Layout.by_token(attention.kv_heads, kept.row(attention.head_dim)),
    )


@dataclass(frozen=True)
class Paging:
    """The rows of a pass that one class serves, and the calls that do it: each gets what the one before made."""

    rows: Ints
    first: Call
    items: mx.array
    merge: Call | None
    parts: mx.array | None
    paged: Paged
    launch: Launch

    @classmethod
    def of(cls, phase: Phase, shape: Shape, batch: Batch, members: Sequence[int], launch: Launch) -> "Paging":
        paged = Paged.of(batch.tables, batch.positions)
        if phase is Phase.PROMPT:
            tiles = PrefillWork.of(batch.starts, members)
            items = mx.array(roomy(tiles.items))
            return cls(tiles.served, prefill_call(shape, tiles), items, None, None, paged, launch)
        work = DecodeWork.of(shape, batch.starts, batch.past, members)
        items, parts = mx.array(roomy(work.items)), mx.array(roomy(work.parts))
        return cls(work.served, decode_call(shape, work), items, merge_call(shape, work), parts, paged, launch)

    def __call__(self, q: mx.array, pool: mx.array, scale: mx.array) -> mx.array:
        """(R, H Dh) of its rows, from q (T, H, Dh) and a layer of the pool that has their keys and values."""
        made = self.launch(self.first, [q, pool, self.paged.tables, self.paged.positions, self.items, scale])
        if self.merge is not None and self.parts is not None:
            made = self.launch(self.merge, [*made, self.parts])
        return made[0].reshape(len(self.rows), -1)


def members_of(batch: Batch) -> dict[Phase, Ints]:
    """The sequences of each class."""
    found = {Phase.DECODE: np.flatnonzero(batch.decodes), Phase.PROMPT: np.flatnonzero(~batch.decodes)}
    return {phase: members.astype(np.int32) for phase, members in found.items()}
