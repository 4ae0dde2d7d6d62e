"""Attention on the host: pools with pages anywhere and anything where nothing was written, ragged batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.metal.attention import (
    PAGE,
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
from engine.metal.attention_numbers import Array, Doubles, coded, decoded, narrowed, widened
from engine.metal.attention_reference import Class, Reference, attended
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
    pages: str = "float16"
    window: int | None = None
    by_head: bool = False

    @property
    def shape(self) -> Shape:
        pages = PAGES[self.pages]
        layout = (Layout.by_head if self.by_head else Layout.by_token)(self.kv_heads, pages.row(self.head_dim))
        heads = self.group * self.kv_heads
        return Shape(heads, self.kv_heads, self.head_dim, self.window, self.queries, pages, layout)


class World:
    """Sequences whose keys and values are all written, each at its own pages of one pool."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case, self.shape = case, case.shape
        self.scale = np.asarray(case.head_dim**-0.5 * 2, np.float32)
        lengths = [past + n for past, n in case.sequences]
        width = -(-max(lengths) // PAGE)
        count = width * len(lengths) + 3
        ids = rng.permutation(count)[: width * len(lengths)]
        self.tables = ids.reshape(len(lengths), width).astype(np.int32)
        self.pool = np.zeros(count * self.shape.layout.page, narrowed(np.zeros(1), self.shape.pages.dtype).dtype)
        self.pool.view(np.uint8)[...] = 0xFF  # NaN in every format, where nothing is written
        heads = (self.shape.heads, case.head_dim)
        self.q = [narrowed(rng.standard_normal((length, *heads)), case.queries) for length in lengths]
        for b, length in enumerate(lengths):
            self.put(b, 0, rng.standard_normal((length, 2, case.kv_heads, case.head_dim)))

    def put(self, b: int, first: int, kv: Doubles) -> None:
        """Writes tokens (n, 2, K, Dh) of a sequence from position `first` on."""
        rows = coded(kv, self.shape.pages)  # (n, 2, K, row)
        self.pool[self._places(b, np.arange(first, first + len(rows)))] = rows

    def _places(self, b: int, tokens: npt.NDArray[np.integer[Any]]) -> Ints:
        """Where rows of a sequence's tokens lie, (n, 2, K, row)."""
        layout, shape = self.shape.layout, self.shape
        at = self.tables[b][tokens // PAGE].astype(np.int64) * layout.page + tokens % PAGE * layout.token
        kind, head = np.arange(2)[:, None, None] * layout.value, np.arange(shape.kv_heads)[:, None] * layout.head
        found: Ints = at[:, None, None, None] + kind + head + np.arange(shape.pages.row(shape.head_dim))
        return found

    def attend(self, kind: Class, spans: Sequence[tuple[int, int, int]], order: Order = Order()) -> list[Array]:  # noqa: B008
        """What comes out for each span (sequence, past, n), all of them in one pass: (n, H, Dh)."""
        starts = np.concatenate([[0], np.cumsum([n for _, _, n in spans])]).astype(np.int32)
        past = np.array([past for _, past, _ in spans], np.int32)
        every = range(len(spans))
        inputs = {
            "q": np.concatenate([self.q[b][past : past + n] for b, past, n in spans]),
            "pool": self.pool,
            "tables": roomy(self.tables[[b for b, _, _ in spans]]),
            "positions": roomy(np.concatenate([np.arange(past, past + n) for _, past, n in spans]).astype(np.int32)),
            "scale": self.scale,
        }
        out = (_decoded if kind == "decode" else _prefilled)(self.shape, inputs, starts, past, every, order)
        return [out[starts[i] : starts[i + 1]] for i in every]

    def exact(self, kind: Class, b: int, past: int, n: int) -> Reference:
        """What a span is to be."""
        shape = self.shape
        kv = decoded(self.pool[self._places(b, np.arange(past + n))], shape.pages, shape.head_dim)
        q = widened(self.q[b][past : past + n], shape.queries)
        return attended(shape, kind, q, kv[:, 0], kv[:, 1], float(self.scale), past)

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
