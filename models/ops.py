"""What a model definition asks of a device: verbs over the batch that the engine has at hand."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import mlx.core as mx

from quant.checkpoint import Tensor


class Matrix(Protocol):
    """A weight matrix (rows, cols) in the form that the device computes with."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Linear:
    """x @ matrix.T + bias."""

    matrix: Matrix
    bias: mx.array | None = None


@dataclass(frozen=True)
class HeadNorms:
    """Weights (Dh,) of the norms that Qwen3 applies to each head of q and k before rope."""

    q: mx.array
    k: mx.array


@dataclass(frozen=True)
class Attention:
    """out(attention of q, k and v of the normed x)."""

    norm: mx.array  # (D,)
    q: Linear
    k: Linear
    v: Linear
    head_norms: HeadNorms | None
    out: Linear


@dataclass(frozen=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)) of the normed x."""

    norm: mx.array  # (D,)
    gate: Linear
    up: Linear
    down: Linear


class Rows(Enum):
    """Which rows of a pass go on."""

    ALL = "all"
    PICKED = "picked"  # those whose logits are wanted, one for each entry of the batch's picks


class Loader(Protocol):
    """Brings tensors of a checkpoint to the device; each is read once."""

    def matrix(self, tensor: Tensor) -> Matrix: ...
    def vector(self, tensor: Tensor) -> mx.array: ...  # (n,) float32


class Ops(Protocol):
    """One pass over a batch of T rows. Activations are (T, width) arrays of the device's choice of dtype.

    The device knows the batch (tokens, positions, pages) and the attention's shape; a model only names weights.
    """

    def embed(self, table: Matrix) -> mx.array: ...
    def add_attention(self, layer: int, x: mx.array, weights: Attention, rows: Rows) -> mx.array:
        """x + attention, for the rows that go on. Keys and values of all rows are written."""
        ...

    def add_mlp(self, x: mx.array, weights: GatedMLP) -> mx.array: ...
    def logits(self, x: mx.array, norm: mx.array, head: Linear) -> mx.array:
        """head(normed x), (P, V)."""
        ...
