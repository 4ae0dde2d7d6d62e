"""A model's verbs on the CPU: primitives of the native extension; no matmul falls to MLX's own CPU backend."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from engine import _native
from engine.batch import Batch
from engine.native_weights import panels
from models.config import ModelConfig
from models.ops import GatedMLP, HeadNorms, Linear, Matrix
from models.rope import rope_table

# MLX hands out the results of a hundred operations ahead of the one that runs; of wide passes that is a lot of memory.
WIDE = 64


class NativePool:
    """The KV pages of every layer: (pages, elements) an array, with this one owner, for they are written in place."""

    def __init__(self, config: ModelConfig, pages: int, context: int, dtype: mx.Dtype) -> None:
        shape = config.attention
        elements = _native.page_elements(shape.kv_heads, shape.head_dim)
        self.layers = [_native.unwritten_pages(pages, elements, dtype) for _ in range(config.layers)]
        self.rope = mx.array(rope_table(shape.rope, context))


class NativeOps:
    """One pass over a batch. Activations are (T, width) float32."""

    def __init__(self, config: ModelConfig, pool: NativePool, batch: Batch) -> None:
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
        )

    def embed(self, table: Matrix) -> mx.array:
        return _native.embed(mx.array(self._batch.tokens), panels(table))

    def norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return _native.norm(x, weight, self._eps)

    def project(self, x: mx.array, linears: Sequence[Linear]) -> list[mx.array]:
        return _native.project(x, [panels(w.matrix) for w in linears], [w.bias for w in linears])

    def add_projected(self, residual: mx.array, x: mx.array, linear: Linear) -> mx.array:
        return _native.add_projected(residual, x, panels(linear.matrix), linear.bias)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, norms: HeadNorms | None) -> mx.array:
        q_norm, k_norm = (norms.q, norms.k) if norms else (None, None)
        return _native.attend(self._plan, self._layers[layer], q, k, v, q_norm, k_norm)

    def add_mlp(self, residual: mx.array, x: mx.array, mlp: GatedMLP) -> mx.array:
        linears = (mlp.gate, mlp.up, mlp.down)
        y = _native.add_gated_mlp(residual, x, [panels(w.matrix) for w in linears], [w.bias for w in linears])
        if y.shape[0] >= WIDE:
            mx.eval(y)
        return y

    def pick(self, x: mx.array) -> mx.array:
        picks = self._batch.picks
        if np.array_equal(picks, np.arange(x.shape[0])):
            return x
        return mx.take(x, mx.array(picks), axis=0, stream=mx.cpu)
