"""Attention on the host: pools with pages anywhere and anything where nothing was written, ragged batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.metal.attention import (
    PAGES,
    DecodeWork,
    Layout,
    PrefillWork,
    Shape,
    decode_call,
    merge_call,
    prefill_call,
    roomy,
)
from engine.metal.attention_numbers import Array
from engine.metal.attention_reference import Class, Reference
from engine.metal.attention_trials import Attended, Written
from tests.metal_host.layer_cases import ran
from tests.metal_host.run import Order

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """Sequences are pairs of how many tokens the pool has and how many a pass brings."""

    sequences: tuple[tuple[int, int], ...]
    group: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    queries: str = "float16"
    out: str = "float16"
    pages: str = "float16"
    window: int | None = None
    by_head: bool = False

    @property
    def shape(self) -> Shape:
        pages = PAGES[self.pages]
        layout = (Layout.by_head if self.by_head else Layout.by_token)(self.kv_heads, pages.row(self.head_dim))
        heads = self.group * self.kv_heads
        return Shape(heads, self.kv_heads, self.head_dim, self.window, self.queries, self.out, pages, layout)


class World(Written):
    """Sequences whose keys and values are all written, each at its own pages of one pool."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        super().__init__(case.shape, case.sequences, seed)
        self.case = case

    def attend(self, kind: Class, spans: Sequence[tuple[int, int, int]], order: Order = Order()) -> list[Array]:  # noqa: B008
        """What comes out for each span (sequence, past, n), all of them in one pass: (n, H, Dh)."""
        starts = np.concatenate([[0], np.cumsum([n for _, _, n in spans])]).astype(np.int32)
        past = np.array([past for _, past, _ in spans], np.int32)
        every = range(len(spans))
        inputs = {
            "q": np.concatenate([self.q[b][past : past + n] for b, past, n in spans]),
            "pool": self.pool.reshape(-1),
            "tables": roomy(self.tables[[b for b, _, _ in spans]]),
            "positions": roomy(np.concatenate([np.arange(past, past + n) for _, past, n in spans]).astype(np.int32)),
            "scale": np.asarray(self.scale, np.float32),
        }
        out = (_decoded if kind == "decode" else _prefilled)(self.shape, inputs, starts, past, every, order)
        return [out[starts[i] : starts[i + 1]] for i in every]

    def exact(self, kind: Class, b: int, past: int, n: int) -> Reference:
        """What a span is to be."""
        return Attended("", kind, self, ((b, past, n),)).reference

    def spans(self) -> list[tuple[int, int, int]]:
        """What a pass brings of each sequence."""
        return [(b, past, n) for b, (past, n) in enumerate(self.case.sequences)]


def _decoded(
    shape: Shape, inputs: dict[str, Array], starts: Ints, past: Ints, every: Sequence[int], order: Order
) -> Array:
    work = DecodeWork.of(shape, starts, past, every)
    assert (work.served == np.arange(starts[-1])).all()
    partials = ran(decode_call(shape, work), {**inputs, "work": roomy(work.items)}, order)[0]
    return ran(merge_call(shape, work), {"partials": partials, "parts": roomy(work.parts)}, order)[0]


def _prefilled(
    shape: Shape, inputs: dict[str, Array], starts: Ints, past: Ints, every: Sequence[int], order: Order
) -> Array:
    work = PrefillWork.of(starts, every)
    assert (work.served == np.arange(starts[-1])).all()
    return ran(prefill_call(shape, work), {**inputs, "work": roomy(work.items)}, order)[0]
