"""A model's verbs on the CPU: primitives of the native extension; no matmul falls to MLX's own CPU backend."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from engine import _native
from engine.batch import Batch
from engine.native_weights import panels
from models.config import ModelConfig
from models.ops import Attention, GatedMLP, Linear, Matrix, Rows
from models.rope import rope_table


class NativePool:
    """The KV pages of every layer: (pages, elements) an array, with this one owner, for they are written in place.

    As bytes (kvcache/store.py) they are to be had between passes.
    """

    def __init__(self, config: ModelConfig, pages: int, context: int, dtype: mx.Dtype) -> None:
        shape = config.attention
        elements = _native.page_elements(shape.kv_heads, shape.head_dim, dtype)
        self.layers = [_native.unwritten_pages(pages, elements, dtype) for _ in range(config.layers)]
        self.rope = mx.array(rope_table(shape.rope, context))

    @property
    def page_bytes(self) -> int:
        return _native.page_bytes(self.layers)

    def copy(self, source: int, target: int) -> None:
        _native.copy_page(self.layers, source, target)

    def read(self, page: int) -> bytes:
        return _native.read_page(self.layers, page)

    def write(self, page: int, content: bytes) -> None:
        _native.write_page(self.layers, page, content)


class Paged(Protocol):
    """What a pass needs of a pool: the pages (pages, elements) of each layer, and rope's table."""

    @property
    def layers(self) -> list[mx.array]: ...
    @property
    def rope(self) -> mx.array: ...


class NativeOps:
    """One pass over a batch. Activations are (T, width) float32."""

    def __init__(self, config: ModelConfig, pool: Paged, batch: Batch) -> None:
        shape = config.attention
        self._batch = batch
        self._eps = config.eps
        self._layers = pool.layers
        self._plan = _native.AttentionPlan.of(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            scale=shape.scale,
            window=shape.window or 0,
            eps=config.eps,
            interleaved=shape.rope.interleaved,
            starts=batch.starts,
            past=batch.past,
            tables=batch.tables,
            rope=pool.rope,
            picks=batch.picks,
        )
        self._picks_all = np.array_equal(batch.picks, np.arange(len(batch.tokens)))

    @property
    def stale(self) -> bool:
        return False  # pages are written in place, by the pass itself

    def begin(self) -> None: ...

    def embed(self, table: Matrix) -> mx.array:
        return _native.embed(self._batch.ids, panels(table))

    def add_attention(self, layer: int, x: mx.array, weights: Attention, rows: Rows) -> mx.array:
        only_picked = rows is Rows.PICKED and not self._picks_all
        return _native.add_attention(x, self._layers[layer], self._plan, self._attention(weights), only_picked)

    def add_mlp(self, x: mx.array, weights: GatedMLP) -> mx.array:
        linears = (weights.gate, weights.up, weights.down)
        return _native.add_gated_mlp(x, *self._projections(linears), weights.norm, self._eps)

    def logits(self, x: mx.array, norm: mx.array, head: Linear) -> mx.array:
        return _native.project(x, *self._projections([head]), norm, self._eps)[0]

    def panels(self, matrix: Matrix) -> _native.Panels:
        """What kernels read of a matrix."""
        return panels(matrix)

    def _projections(self, linears: Sequence[Linear]) -> tuple[list[_native.Panels], list[mx.array | None]]:
        return [self.panels(w.matrix) for w in linears], [w.bias for w in linears]

    def _attention(self, weights: Attention) -> _native.AttentionWeights:
        norms = weights.head_norms
        matrices, biases = self._projections((weights.q, weights.k, weights.v, weights.out))
        return _native.AttentionWeights(
            weights.norm, matrices, biases, norms.q if norms else None, norms.k if norms else None
        )
