"""Ops by MLX's own kernels, for every device that MLX has: the slow twin of our kernels, and what GPUs run."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.batch import Batch, Ints
from engine.builtin_weights import BuiltinMatrix
from models.config import AttentionShape, ModelConfig
from models.ops import Attention, GatedMLP, HeadNorms, Linear, Matrix, Rows
from models.rope import Rope, rope_table


class BuiltinPool:
    """Keys and values of every layer, one array a layer, written in place.

    A write happens in place while nothing else refers to the array when it is computed: whoever keeps another
    reference, or leaves a pass unevaluated when the next begins, makes MLX copy the pool. As bytes (kvcache/store.py)
    pages are to be had between passes. Behind the pages' slots lies one that is never written: it stays zero, and what
    a sequence must not see is read from there.
    """

    def __init__(self, config: ModelConfig, pages: int, page_size: int, dtype: mx.Dtype) -> None:
        shape = config.attention
        self.page_size = page_size
        self.nowhere = pages * page_size
        slots = (self.nowhere + 1, 2, shape.kv_heads, shape.head_dim)
        self.layers = [mx.zeros(slots, dtype) for _ in range(config.layers)]
        self.changes = 0
        self.turns = mx.array(rope_table(shape.rope, min(config.context, self.nowhere)))  # (positions, rope dims)
        mx.eval(self.layers, self.turns)

    @property
    def page_bytes(self) -> int:
        return sum(layer[: self.page_size].nbytes for layer in self.layers)

    def snapshot(self, pages: Sequence[int], tokens: int) -> list[mx.array]:
        """Of each layer the keys and values (tokens, 2, K, Dh) of a sequence's first tokens, as they are now."""
        parts = [layer[self._slots_of(pages, 0, tokens)] for layer in self.layers]
        mx.eval(parts)
        return parts

    def put(self, pages: Sequence[int], first: int, parts: Sequence[mx.array]) -> None:
        """A sequence's tokens from `first` on are the parts, one a layer, each (n, 2, K, Dh)."""
        self._put(self._slots_of(pages, first, len(parts[0])), parts)

    def copy(self, source: int, target: int) -> None:
        slots = self._slots_of([source], 0, self.page_size)
        self._put(self._slots_of([target], 0, self.page_size), [layer[slots] for layer in self.layers])

    def read(self, page: int) -> bytes:
        slots = self._slots_of([page], 0, self.page_size)
        parts = [layer[slots].view(mx.uint8) for layer in self.layers]
        return b"".join(np.array(part).tobytes() for part in parts)

    def write(self, page: int, content: bytes) -> None:
        _, two, heads, _ = self.layers[0].shape
        raw = np.frombuffer(content, np.uint8).reshape(len(self.layers), self.page_size, two, heads, -1)
        self.put([page], 0, [mx.array(part).view(self.layers[0].dtype) for part in raw])

    def _put(self, slots: mx.array, parts: Sequence[mx.array]) -> None:
        mx.eval(parts)
        mx.synchronize()  # from here on nothing but the pool refers to its arrays: see Writing.begin
        self.changes += 1
        for layer, part in zip(self.layers, parts, strict=True):
            layer[slots] = part
        mx.eval(self.layers)

    def _slots_of(self, pages: Sequence[int], first: int, tokens: int) -> mx.array:
        """Where a sequence's tokens lie. As an index that gathers and scatters: a slice of a pool would refer to it."""
        at = np.arange(first, first + tokens)
        return mx.array(
            (np.asarray(pages)[at // self.page_size] * self.page_size + at % self.page_size).astype(np.int32)
        )


class Writing:
    """The pool as one pass leaves it. Until the pass begins the pool knows nothing of it, and it may be forgotten."""

    def __init__(self, pool: BuiltinPool) -> None:
        self._pool = pool
        self._known = pool.changes
        # Their content is not copied; what an index writes is ours. None from the begin on: then it is the pool's.
        self._own: list[mx.array] | None = [copy(layer) for layer in pool.layers]

    @property
    def _layers(self) -> list[mx.array]:
        return self._pool.layers if self._own is None else self._own

    @property
    def stale(self) -> bool:
        return self._known != self._pool.changes

    def begin(self) -> None:
        """Now only the pass refers to what the pool held, so it is written in place."""
        assert self._own is not None, "it has begun"
        assert not self.stale, "somebody else wrote to the pool"
        # On a GPU the passes before are over, as their logits are known; but what they read is let go a moment later,
        # by a handler. Whoever synchronises waits for that too.
        mx.synchronize()
        self._pool.layers, self._own = self._own, None
        self._pool.changes += 1

    def write_rows(self, layer: int, slots: mx.array, k: mx.array, v: mx.array) -> None:
        """k and v (T, K, Dh) lie at their slots when the pass has been evaluated."""
        pool = self._layers[layer]
        pool[slots] = mx.stack([k, v], axis=1).astype(pool.dtype)

    def read_rows(self, layer: int, slots: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values (B, K, S, Dh) at slots (B, S)."""
        both = self._layers[layer][slots].transpose(2, 0, 3, 1, 4)
        return both[0], both[1]

    def pages(self, layer: int) -> mx.array:
        """All slots (slots, 2, K, Dh), with what the pass has written so far; nobody keeps it beyond the pass."""
        return self._layers[layer]


@dataclass(frozen=True)
class Group:
    """Sequences that bring the same number of tokens n, attended in one call over the S slots of the longest."""

    rows: mx.array  # (B, n)
    slots: mx.array  # (B, S)
    mask: mx.array | str | None  # (B, 1, n, S) true where a row sees a slot


class BuiltinOps:
    """One pass. The residual stream is float32; matrices multiply, and attention runs, in `dtype`.

    `gathered` are the sequences whose pages MLX's attention gathers: all, unless a device has more to offer.
    """

    def __init__(
        self, config: ModelConfig, pool: BuiltinPool, batch: Batch, dtype: mx.Dtype, gathered: Ints | None = None
    ) -> None:
        self.shape = config.attention
        self.eps = config.eps
        self.dtype = dtype
        self._writing = Writing(pool)
        self._tokens = batch.ids
        self._picks = mx.array(batch.picks)
        self._slots = mx.array(_slots_written(batch, pool.page_size))
        self._turns = pool.turns[mx.array(batch.positions)]
        members = np.arange(len(batch.past), dtype=np.int32) if gathered is None else gathered
        alike = _of_equal_length(np.diff(batch.starts), members)
        self._groups = [_group(batch, pool, some, self.shape) for some in alike]
        self._back = back_to_rows([np.array(group.rows).reshape(-1) for group in self._groups])

    @property
    def stale(self) -> bool:
        return self._writing.stale

    def begin(self) -> None:
        self._writing.begin()

    def embed(self, table: Matrix) -> mx.array:
        return cast(BuiltinMatrix, table).at(self._tokens).astype(mx.float32)

    def add_attention(self, layer: int, x: mx.array, weights: Attention, rows: Rows) -> mx.array:
        normed = self._normed(x, weights.norm)
        q, k, v = (self.linear(normed, linear) for linear in (weights.q, weights.k, weights.v))
        y = self.attend(layer, q, k, v, weights.head_norms)
        if rows is Rows.PICKED:
            x, y = self.picked(x), self.picked(y)
        return self._added(x, self.linear(y, weights.out))

    def picked(self, x: mx.array) -> mx.array:
        """The rows whose logits are wanted, with which alone the pass goes on."""
        return x[self._picks]

    def add_mlp(self, x: mx.array, weights: GatedMLP) -> mx.array:
        normed = self._normed(x, weights.norm)
        gated = self._gated(self.linear(normed, weights.gate), self.linear(normed, weights.up))
        return self._added(x, self.linear(gated, weights.down))

    def logits(self, x: mx.array, norm: mx.array, head: Linear) -> mx.array:
        return self.linear(self._normed(x, norm), head)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, norms: HeadNorms | None) -> mx.array:
        q, k, v = (x.reshape(len(x), -1, self.shape.head_dim) for x in (q, k, v))  # (T, H, Dh), (T, K, Dh)
        if norms:
            q = mx.fast.rms_norm(q, norms.q.astype(q.dtype), self.eps)
            k = mx.fast.rms_norm(k, norms.k.astype(k.dtype), self.eps)
        q, k = (turned(x, self.shape.rope, self._turns) for x in (q, k))
        self._writing.write_rows(layer, self._slots, k, v)
        return self.mixed(layer, q)

    def mixed(self, layer: int, q: mx.array) -> mx.array:
        """The values (T, H Dh) of what queries q (T, H, Dh) see in the pool, weighed."""
        seen = self._seen(layer, q)
        out = seen[0] if len(seen) == 1 else mx.concatenate(seen)
        return out[self._back] if self._back is not None else out

    def linear(self, x: mx.array, linear: Linear) -> mx.array:
        if len(x) == 0:  # no rows are wanted: a prompt's chunk before its last. Still hangs on x, so that x is computed
            return mx.broadcast_to(x[:, :1], (0, linear.matrix.rows))
        product = cast(BuiltinMatrix, linear.matrix).times(x)
        return product if linear.bias is None else product + linear.bias.astype(product.dtype)

    def _added(self, x: mx.array, product: mx.array) -> mx.array:
        """The residual stream with what a layer's half adds to it."""
        return x + product

    def _gated(self, gate: mx.array, up: mx.array) -> mx.array:
        return gate * mx.sigmoid(gate) * up

    def _normed(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self.eps).astype(self.dtype)

    def _seen(self, layer: int, q: mx.array) -> list[mx.array]:
        return [self._attend(layer, q, group) for group in self._groups]

    def _attend(self, layer: int, q: mx.array, group: Group) -> mx.array:
        keys, values = self._writing.read_rows(layer, group.slots)
        mixed = mx.fast.scaled_dot_product_attention(
            q[group.rows].swapaxes(1, 2),  # (B, H, n, Dh)
            keys.astype(q.dtype),
            values.astype(q.dtype),
            scale=self.shape.scale,
            mask=group.mask,
        )
        return mixed.swapaxes(1, 2).reshape(group.rows.size, -1)


def turned(x: mx.array, rope: Rope, turns: mx.array) -> mx.array:
    """Rope over the heads of x (T, H, Dh), computed in float32; turns (T, rope dims) are cosines, then sines."""
    cos, sin = mx.split(turns[:, None], 2, axis=-1)  # (T, 1, dims/2)
    head = x[..., : rope.dims].astype(mx.float32)
    if rope.interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        both = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(head.shape)
    else:
        a, b = mx.split(head, 2, axis=-1)
        both = mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return mx.concatenate([both.astype(x.dtype), x[..., rope.dims :]], axis=-1)


def _slots_written(batch: Batch, page_size: int) -> Ints:
    """The slot of each row's own key and value, (T,)."""
    sequence = np.repeat(np.arange(len(batch.past)), np.diff(batch.starts))
    page = batch.tables[sequence, batch.positions // page_size]
    return (page * page_size + batch.positions % page_size).astype(np.int32)


def _of_equal_length(lengths: Ints, members: Ints) -> list[Ints]:
    """The members that bring n tokens, for each n."""
    return [members[lengths[members] == n] for n in np.unique(lengths[members])]


def _group(batch: Batch, pool: BuiltinPool, members: Ints, shape: AttentionShape) -> Group:
    starts, past = batch.starts[members], batch.past[members]
    n = int(batch.starts[members[0] + 1] - starts[0])
    ends = past + n  # (B,)
    columns = np.arange(ends.max())  # (S,)
    slots = batch.tables[members][:, columns // pool.page_size] * pool.page_size + columns % pool.page_size
    slots = np.where(columns < ends[:, None], slots, pool.nowhere)
    positions = past[:, None] + np.arange(n)  # (B, n)
    sees = columns <= positions[:, :, None]  # (B, n, S)
    if shape.window is not None:
        sees &= columns > positions[:, :, None] - shape.window
    return Group(
        rows=mx.array(starts[:, None] + np.arange(n)),
        slots=mx.array(slots.astype(np.int32)),
        mask=_mask(sees, shape.window),
    )


def _mask(sees: npt.NDArray[np.bool_], window: int | None) -> mx.array | str | None:
    """The cheapest form of what each row sees: MLX's kernels know "everything" and "the last n are causal"."""
    if sees.all():
        return None
    if len(sees) == 1 and window is None:
        return "causal"
    return mx.array(sees[:, None])


def back_to_rows(parts: Sequence[Ints]) -> mx.array | None:
    """Where each row of the batch lies among the rows of all parts; None if they lie in order."""
    order = np.concatenate([np.empty(0, np.int32), *parts])
    return None if (np.diff(order) == 1).all() else mx.array(np.argsort(order).astype(np.int32))
