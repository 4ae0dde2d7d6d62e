"""A model's verbs in float64 on the decoded weights, for one whole prompt: what every device approximates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.config import ModelConfig
from models.llama import Llama
from models.ops import Attention, GatedMLP, HeadNorms, Linear, Matrix, Rows
from models.rope import rope_table
from quant.checkpoint import Tensor

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExactMatrix:
    values: Doubles

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def cols(self) -> int:
        return self.values.size // len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class ExactLoader:
    def matrix(self, tensor: Tensor) -> Matrix:
        return ExactMatrix(tensor.values().astype(np.float64))

    def vector(self, tensor: Tensor) -> mx.array:
        return cast(mx.array, tensor.values().astype(np.float64))


class ExactOps:
    """Arrays are numpy's, in float64; the protocol's word for them is mx.array, and no verb of a model looks inside."""

    def __init__(self, config: ModelConfig, tokens: Sequence[int]) -> None:
        self._config = config
        self._tokens = np.asarray(tokens)
        self._rope = rope_table(config.attention.rope, len(tokens)).astype(np.float64)

    def embed(self, table: Matrix) -> Any:
        return _values(table)[self._tokens]

    def add_attention(self, layer: int, x: Any, weights: Attention, rows: Rows) -> Any:
        normed = _normed(x, weights.norm, self._config.eps)
        q, k, v = (_linear(normed, linear) for linear in (weights.q, weights.k, weights.v))
        return x + _linear(self._attended(q, k, v, weights.head_norms), weights.out)

    def add_mlp(self, x: Any, weights: GatedMLP) -> Any:
        normed = _normed(x, weights.norm, self._config.eps)
        gate = _linear(normed, weights.gate)
        return x + _linear(gate / (1 + np.exp(-gate)) * _linear(normed, weights.up), weights.down)

    def logits(self, x: Any, norm: Any, head: Linear) -> Any:
        return _linear(_normed(x, norm, self._config.eps), head)

    def _attended(self, q: Any, k: Any, v: Any, norms: HeadNorms | None) -> Any:
        shape, n = self._config.attention, len(self._tokens)
        counts = (shape.heads, shape.kv_heads, shape.kv_heads)
        q, k, v = (x.reshape(n, count, shape.head_dim) for x, count in zip((q, k, v), counts, strict=True))
        if norms:
            q, k = _normed(q, norms.q, self._config.eps), _normed(k, norms.k, self._config.eps)
        group = shape.heads // shape.kv_heads
        k, v = np.repeat(self._turned(k), group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", self._turned(q), k) * shape.scale
        distance = np.arange(n)[:, None] - np.arange(n)[None, :]
        scores = np.where((distance >= 0) & (distance < (shape.window or n)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(n, -1)

    def _turned(self, x: Doubles) -> Doubles:
        rope = self._config.attention.rope
        half = rope.dims // 2
        cos, sin = self._rope[:, None, :half], self._rope[:, None, half:]
        first = np.arange(half) * 2 if rope.interleaved else np.arange(half)
        second = first + (1 if rope.interleaved else half)
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return y


def exact_logits(model: Llama, config: ModelConfig, tokens: Sequence[int]) -> Doubles:
    """Logits (T, V) of every position, of a model that was loaded by ExactLoader."""
    return cast(Doubles, model.forward(ExactOps(config, tokens)))


def _values(matrix: Matrix) -> Doubles:
    assert isinstance(matrix, ExactMatrix), "a matrix of another device"
    return matrix.values


def _linear(x: Doubles, linear: Linear) -> Doubles:
    y = x @ _values(linear.matrix).T
    return y if linear.bias is None else y + cast(Doubles, linear.bias)


def _normed(x: Doubles, weight: Any, eps: float) -> Doubles:
    return cast(Doubles, x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight)
