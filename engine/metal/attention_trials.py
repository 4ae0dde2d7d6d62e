"""Random sequences in pages anywhere, passes over them, and their attention in float64."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.metal.attention import PAGE, Shape
from engine.metal.attention_numbers import Array, Doubles, coded, decoded, narrowed, widened
from engine.metal.attention_reference import Class, Reference, attended
from engine.metal.kernel import mlx_value

Ints = npt.NDArray[np.int32]
Lengths = tuple[tuple[int, int], ...]  # of each sequence what the pool has, and what a pass brings


class Written:
    """Sequences whose queries, keys and values are all there. Where nothing was written pages hold no number; behind
    all of them lies a slot of zeros."""

    def __init__(self, shape: Shape, lengths: Lengths, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape, self.lengths = shape, lengths
        self.scale = float(np.float32(2 * shape.head_dim**-0.5))
        tokens = [past + n for past, n in lengths]
        width = -(-max(tokens) // PAGE)
        self.pages = width * len(tokens) + 3
        ids = rng.permutation(self.pages)[: width * len(tokens)]
        self.tables = ids.reshape(len(tokens), width).astype(np.int32)
        dtype = narrowed(np.zeros(1), shape.pages.dtype).dtype
        self.pool = np.zeros((self.pages * PAGE + 1, 2, shape.kv_heads, shape.pages.row(shape.head_dim)), dtype)
        self.pool[:-1].view(np.uint8)[...] = 0xFF
        heads = (shape.heads, shape.head_dim)
        self.q = [narrowed(rng.standard_normal((count, *heads)), shape.queries) for count in tokens]
        for b, count in enumerate(tokens):
            self.put(b, 0, rng.standard_normal((count, 2, shape.kv_heads, shape.head_dim)))

    def put(self, b: int, first: int, kv: Doubles) -> None:
        """Writes tokens (n, 2, K, Dh) of a sequence from position `first` on."""
        places = self._places(b, np.arange(first, first + len(kv)))
        self.pool.reshape(-1)[places] = coded(kv, self.shape.pages)

    def kv(self, b: int, tokens: int) -> Doubles:
        """Its first keys and values as they are stored, (n, 2, K, Dh)."""
        rows = self.pool.reshape(-1)[self._places(b, np.arange(tokens))]
        return decoded(rows, self.shape.pages, self.shape.head_dim)

    @cached_property
    def on_device(self) -> mx.array:
        return device_array(self.pool, self.shape.pages.dtype)

    def _places(self, b: int, tokens: npt.NDArray[np.integer[Any]]) -> Ints:
        """Where rows of a sequence's tokens lie, (n, 2, K, row)."""
        layout, shape = self.shape.layout, self.shape
        at = self.tables[b][tokens // PAGE].astype(np.int64) * layout.page + tokens % PAGE * layout.token
        kind, head = np.arange(2)[:, None, None] * layout.value, np.arange(shape.kv_heads)[:, None] * layout.head
        found: Ints = at[:, None, None, None] + kind + head + np.arange(shape.pages.row(shape.head_dim))
        return found


def device_array(stored: Array, dtype: str) -> mx.array:
    """As MLX has it; bfloat16 comes as its bits."""
    array = mx.array(stored)
    return array.view(mx.bfloat16) if dtype == "bfloat16" else array.astype(mlx_value(dtype))


@dataclass(frozen=True)
class Attended:
    """A pass of one class over written sequences: spans are (sequence, past, n)."""

    name: str
    kind: Class
    written: Written
    spans: tuple[tuple[int, int, int], ...]

    @cached_property
    def starts(self) -> Ints:
        return np.cumsum([0, *(n for _, _, n in self.spans)]).astype(np.int32)

    @cached_property
    def past(self) -> Ints:
        return np.array([past for _, past, _ in self.spans], np.int32)

    @cached_property
    def tables(self) -> Ints:
        return self.written.tables[[b for b, _, _ in self.spans]]

    @cached_property
    def positions(self) -> Ints:
        return np.concatenate([np.arange(past, past + n) for _, past, n in self.spans]).astype(np.int32)

    @cached_property
    def q(self) -> Array:
        """(T, H, Dh), as stored."""
        return np.concatenate([self.written.q[b][past : past + n] for b, past, n in self.spans])

    @cached_property
    def reference(self) -> Reference:
        made = [self._of(*span) for span in self.spans]
        return Reference(np.concatenate([m.exact for m in made]), np.concatenate([m.bound for m in made]))

    @property
    def exact(self) -> Doubles:
        return self.reference.exact

    def alone(self, row: int) -> "Attended":
        at = int(np.searchsorted(self.starts, row, "right")) - 1
        b, past, _ = self.spans[at]
        return replace(self, name=f"{self.name}, row {row} alone", spans=((b, past + row - int(self.starts[at]), 1),))

    def _of(self, b: int, past: int, n: int) -> Reference:
        written, shape = self.written, self.written.shape
        kv = written.kv(b, past + n)
        q = widened(written.q[b][past : past + n], shape.queries)
        return attended(shape, self.kind, q, kv[:, 0], kv[:, 1], written.scale, past)


def brought(name: str, kind: Class, written: Written) -> Attended:
    """All sequences with what their lengths say."""
    return Attended(name, kind, written, tuple((b, past, n) for b, (past, n) in enumerate(written.lengths)))


def trials(shape: Shape, kind: Class) -> Iterator[Attended]:
    """Ends of pages, tiles and partitions, first tokens, several rows of a sequence, and a window's both edges."""
    edge = shape.window or 40
    ends = tuple((past, 1) for past in (0, 30, 31, 32, 255, 256, 511, edge - 1, edge))
    yield brought("ends", kind, Written(shape, ends))
    yield brought("rows", kind, Written(shape, ((0, 70), (250, 9), (33, 2), (edge, 33)), seed=1))


def timed(shape: Shape, kind: Class) -> list[Attended]:
    """A lone answer and eight at once, or a chunk of a prompt; after a few tokens and after many."""
    if kind == "decode":
        passes: dict[str, Lengths] = {"1 after 4096": ((4096, 1),), "8 after 1024": ((1024, 1),) * 8}
    else:
        passes = {"512 after 0": ((0, 512),), "512 after 2048": ((2048, 512),)}
    return [brought(f"{kind} {name}", kind, Written(shape, lengths)) for name, lengths in passes.items()]


def spot(shape: Shape, kind: Class) -> Iterator[Attended]:
    yield brought(f"spot, {kind}", kind, Written(shape, ((260, 3), (0, 5))))
