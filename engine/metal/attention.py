"""Paged attention on the Apple GPU: one class of kernels for steps of an answer, one for prompts.

A row's result depends on its own tokens and on its class alone. Within a class it has the same bits alone, in any
batch, in any chunk of its prompt and wherever its pages lie. Between the classes it agrees to rounding: the decode
class sums a score over lanes and weighs in partitions of 256 tokens, the prefill class leaves sums of eight to the
matrix units and weighs in tiles of 32. So whoever computes a token again must use the class that computed it first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.metal.kernel import Input, Kernel, Output, Size, Template, text

Ints = npt.NDArray[np.int32]

PAGE = 32  # tokens; a simdgroup's part of a partition, and a tile of prefill
GROUP = 32  # dims that share a scale in quantised pages
PARTITION = 256  # tokens at absolute positions that are weighed together
TILE = 32  # rows of a prompt that share a threadgroup

HEAD_DIMS = (64, 80, 96, 128, 256)
FLOATS = ("float16", "bfloat16", "float32")
MOST_STAGED = 32 << 10  # bytes of threadgroup memory; a page's keys of one head have to leave some of it
MOST_GROUPED = 8  # query heads that share a KV head

_HEADER = text("layer.h") + text("attention.h")


@dataclass(frozen=True)
class Layout:
    """How far apart neighbours lie in a layer of a pool, counted in numbers."""

    token: int  # of a page
    head: int
    value: int  # from a key to its value
    page: int

    @classmethod
    def by_token(cls, kv_heads: int, row: int) -> "Layout":
        """(slots, 2, K, row), as BuiltinPool has it: what a token has is one piece, and a write one scatter."""
        return cls(2 * kv_heads * row, row, kv_heads * row, PAGE * 2 * kv_heads * row)

    @classmethod
    def by_head(cls, kv_heads: int, row: int) -> "Layout":
        """(pages, 2, K, 32, row): what a threadgroup reads of a page is one piece."""
        page = PAGE * row
        return cls(row, page, kv_heads * page, 2 * kv_heads * page)


@dataclass(frozen=True)
class Pages:
    """How a row of a head, its Dh numbers, lies in a page.

    Codes lie behind the scales of their groups of 32 dims, which are bfloat16 and filled up to whole 4 bytes.
    """

    dtype: str  # of the pool's array
    bits: int  # of a number

    def row(self, head_dim: int) -> int:
        """Elements of the array that hold it."""
        if self.bits > 8:
            return head_dim
        return self.codes_at(head_dim) + (head_dim if self.bits == 8 else -(-head_dim // GROUP) * GROUP // 2)

    def codes_at(self, head_dim: int) -> int:
        return -(-head_dim // (2 * GROUP)) * 4


PAGES = {
    "float16": Pages("float16", 16),
    "bfloat16": Pages("bfloat16", 16),
    "float32": Pages("float32", 32),
    "q8": Pages("uint8", 8),
    "q4": Pages("uint8", 4),
}


@dataclass(frozen=True)
class Shape:
    """What of attention is settled with the model, and so is part of a kernel's instance."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    queries: str  # dtype of q and of what comes out
    pages: Pages
    layout: Layout

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def together(self) -> int:
        """Queries that a decode threadgroup has registers for."""
        return 8 if self.head_dim <= 128 else 4

    @property
    def share(self) -> int:
        """Query heads of a group that a decode threadgroup serves."""
        return min(self.group, self.together)

    @property
    def parts(self) -> int:
        """Decode threadgroups that share the query heads of a group."""
        return -(-self.group // self.share)

    def first_seen(self, position: int) -> int:
        return 0 if self.window is None else max(0, position + 1 - self.window)


def supports(shape: Shape) -> bool:
    return (
        shape.head_dim in HEAD_DIMS
        and shape.heads % shape.kv_heads == 0
        and shape.group <= MOST_GROUPED
        and shape.queries in FLOATS
        and PAGE * shape.head_dim * shape.pages.bits // 8 < MOST_STAGED
    )


@dataclass(frozen=True)
class Call:
    """One dispatch, but for its arrays."""

    kernel: Kernel
    template: Template
    grid: Size  # threads
    threadgroup: Size
    shapes: tuple[tuple[int, ...], ...]  # of what comes out

    def launch(self, *inputs: mx.array) -> list[mx.array]:
        return self.kernel.launch(inputs, self.template, self.grid, self.threadgroup, self.shapes)


@dataclass(frozen=True)
class DecodeWork:
    """What the decode class does for some sequences of a batch.

    An item is a partition, and of one sequence up to `rows` neighbouring rows that see some of it. Items of the same
    rows follow each other with ascending partitions, so that a row's partitions are a run of items.
    """

    items: Ints  # (W, 4) sequence, partition, first row, rows
    parts: Ints  # (R, 4) of each row its first item, how many, its place among the item's rows, 0
    rows: int
    served: Ints  # (R,) rows of the batch in the order in which they come out

    @classmethod
    def of(cls, shape: Shape, starts: Ints, past: Ints, sequences: Sequence[int]) -> "DecodeWork":
        """Of the sequences b, which bring rows starts[b] to starts[b + 1] behind past[b] tokens."""
        assert sequences, "somebody is to be served"
        most = max(int(starts[b + 1] - starts[b]) for b in sequences)
        rows = 1 if most == 1 else shape.together // shape.share  # two instances of the kernel, not one for each length
        items: list[Ints] = []
        parts: list[tuple[int, int, int, int]] = []
        served: list[int] = []
        count = 0
        for b in sequences:
            for first in range(int(starts[b]), int(starts[b + 1]), rows):
                n = min(rows, int(starts[b + 1]) - first)
                at = int(past[b]) + first - int(starts[b])
                low, high = shape.first_seen(at) // PARTITION, (at + n - 1) // PARTITION
                run = np.arange(low, high + 1)
                items.append(np.stack([run * 0 + b, run, run * 0 + first, run * 0 + n], axis=1).astype(np.int32))
                for r in range(n):
                    begin, end = shape.first_seen(at + r) // PARTITION, (at + r) // PARTITION
                    parts.append((count + begin - low, end - begin + 1, r, 0))
                served += range(first, first + n)
                count += len(run)
        return cls(np.concatenate(items), np.asarray(parts, np.int32), rows, np.asarray(served, np.int32))


@dataclass(frozen=True)
class PrefillWork:
    """What the prefill class does for some sequences of a batch: an item is a tile of one's neighbouring rows."""

    items: Ints  # (W, 4) sequence, first row, rows, where its first row comes out
    served: Ints  # (R,)

    @classmethod
    def of(cls, starts: Ints, sequences: Sequence[int]) -> "PrefillWork":
        assert sequences, "somebody is to be served"
        items: list[tuple[int, int, int, int]] = []
        served: list[int] = []
        for b in sequences:
            for first in range(int(starts[b]), int(starts[b + 1]), TILE):
                n = min(TILE, int(starts[b + 1]) - first)
                items.append((b, first, n, len(served)))
                served += range(first, first + n)
        return cls(np.asarray(items, np.int32), np.asarray(served, np.int32))


_PAGED = (
    Input("q", "Q"),  # (T, H, Dh)
    Input("pool", "KV"),
    Input("tables", "int32"),  # (B, M)
    Input("positions", "int32"),  # (T,)
    Input("work", "int32"),  # (W, 4)
    Input("scale", "float32", "scalar"),
)
_STRIDES = ("TOKEN_STRIDE", "HEAD_STRIDE", "VALUE_STRIDE", "PAGE_STRIDE")
_OF_SHAPE = ("Q", "KV", "BITS", "HEADS", "KV_HEADS", "HEAD_DIM", "WINDOW", *_STRIDES)

DECODE = Kernel(
    name="attention_decode",
    inputs=_PAGED,
    outputs=(Output("partials", "float32"),),  # (W, rows, H, Dh + 2)
    body=text("attention_decode.metal"),
    header=_HEADER,
    template=(*_OF_SHAPE, "ROWS", "SHARE", "QUERIES"),
)
MERGE = Kernel(
    name="attention_merge",
    inputs=(Input("partials", "float32"), Input("parts", "int32")),  # as above, (R, 4)
    outputs=(Output("out", "Q"),),  # (R, H, Dh)
    body=text("attention_merge.metal"),
    header=_HEADER,
    template=("Q", "HEADS", "HEAD_DIM", "ROWS"),
)
PREFILL = Kernel(
    name="attention_prefill",
    inputs=_PAGED,
    outputs=(Output("out", "Q"),),  # (R, H, Dh)
    body=text("attention_prefill.metal"),
    header=_HEADER,
    template=(*_OF_SHAPE, "S"),
)


def _of_shape(shape: Shape) -> Template:
    return {
        "Q": shape.queries,
        "KV": shape.pages.dtype,
        "BITS": shape.pages.bits,
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "HEAD_DIM": shape.head_dim,
        "WINDOW": shape.window or 0,
        "TOKEN_STRIDE": shape.layout.token,
        "HEAD_STRIDE": shape.layout.head,
        "VALUE_STRIDE": shape.layout.value,
        "PAGE_STRIDE": shape.layout.page,
    }


def decode_call(shape: Shape, work: DecodeWork) -> Call:
    """A simdgroup for each page of a partition; a threadgroup for each KV head and item, or for half a wide group."""
    slots = work.rows * shape.share
    queries = 1 << (slots - 1).bit_length()
    return Call(
        kernel=DECODE,
        template={**_of_shape(shape), "ROWS": work.rows, "SHARE": shape.share, "QUERIES": queries},
        grid=(PARTITION, shape.kv_heads * shape.parts, len(work.items)),
        threadgroup=(PARTITION, 1, 1),
        shapes=((len(work.items), work.rows, shape.heads, shape.head_dim + 2),),
    )


def merge_call(shape: Shape, work: DecodeWork) -> Call:
    """A thread for each number that comes out."""
    return Call(
        kernel=MERGE,
        template={"Q": shape.queries, "HEADS": shape.heads, "HEAD_DIM": shape.head_dim, "ROWS": work.rows},
        grid=(shape.head_dim, shape.heads, len(work.served)),
        threadgroup=(shape.head_dim, 1, 1),
        shapes=((len(work.served), shape.heads, shape.head_dim),),
    )


def prefill_call(shape: Shape, work: PrefillWork) -> Call:
    """Four simdgroups of eight rows for each head and tile. Codes are staged as float16, which holds them exactly."""
    return Call(
        kernel=PREFILL,
        template={**_of_shape(shape), "S": shape.pages.dtype if shape.pages.bits > 8 else "float16"},
        grid=(128, shape.heads, len(work.items)),
        threadgroup=(128, 1, 1),
        shapes=((len(work.served), shape.heads, shape.head_dim),),
    )


def roomy(array: Ints) -> Ints:
    """The same with zeros behind it: MLX compiles another kernel for an input of fewer than eight numbers."""
    missing = -(-max(0, 8 - array.size) // (array.size // len(array)))
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


@dataclass(frozen=True)
class Paged:
    """A pass's page tables and positions on the GPU, made once for all its layers."""

    tables: mx.array  # (B, M)
    positions: mx.array  # (T,)

    @classmethod
    def of(cls, tables: Ints, positions: Ints) -> "Paged":
        return cls(mx.array(roomy(tables)), mx.array(roomy(positions)))


@dataclass(frozen=True)
class Decode:
    """The decode class for some rows of a pass."""

    shape: Shape
    work: DecodeWork
    paged: Paged
    items: mx.array
    parts: mx.array

    @classmethod
    def of(cls, shape: Shape, work: DecodeWork, paged: Paged) -> "Decode":
        return cls(shape, work, paged, mx.array(roomy(work.items)), mx.array(roomy(work.parts)))

    def __call__(self, q: mx.array, pool: mx.array, scale: mx.array) -> mx.array:
        """(R, H, Dh) of the rows served, from q (T, H, Dh) and a layer of the pool that has their keys and values."""
        made = decode_call(self.shape, self.work).launch(
            q, pool, self.paged.tables, self.paged.positions, self.items, scale
        )
        return merge_call(self.shape, self.work).launch(*made, self.parts)[0]


@dataclass(frozen=True)
class Prefill:
    """The prefill class for some rows of a pass."""

    shape: Shape
    work: PrefillWork
    paged: Paged
    items: mx.array

    @classmethod
    def of(cls, shape: Shape, work: PrefillWork, paged: Paged) -> "Prefill":
        return cls(shape, work, paged, mx.array(roomy(work.items)))

    def __call__(self, q: mx.array, pool: mx.array, scale: mx.array) -> mx.array:
        """As of the decode class."""
        call = prefill_call(self.shape, self.work)
        return call.launch(q, pool, self.paged.tables, self.paged.positions, self.items, scale)[0]
