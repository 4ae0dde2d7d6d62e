"""What a model definition asks of a device: verbs over the batch that the engine has at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
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
class GatedMLP:
    """down(silu(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class HeadNorms:
    """Weights (Dh,) of the norms that Qwen3 applies to each head of q and k before rope."""

    q: mx.array
    k: mx.array


class Loader(Protocol):
    """Brings tensors of a checkpoint to the device; each is read once."""

    def matrix(self, tensor: Tensor) -> Matrix: ...
    def vector(self, tensor: Tensor) -> mx.array: ...  # (n,) float32


class Ops(Protocol):
    """One pass over a batch of T rows. Activations are (T, width) arrays of the device's choice of dtype.

    The device knows the batch (tokens, positions, pages) and the attention's shape; a model only names weights.
    """

    def embed(self, table: Matrix) -> mx.array: ...
    def norm(self, x: mx.array, weight: mx.array) -> mx.array: ...
    def project(self, x: mx.array, linears: Sequence[Linear]) -> list[mx.array]: ...
    def add_projected(self, residual: mx.array, x: mx.array, linear: Linear) -> mx.array: ...
    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, norms: HeadNorms | None) -> mx.array:
        """Head norms, rope, KV write and attention of one layer: (T, H * Dh)."""
        ...

    def add_mlp(self, residual: mx.array, x: mx.array, mlp: GatedMLP) -> mx.array: ...
    def pick(self, x: mx.array) -> mx.array:
        """The rows of x whose logits are wanted, one for each entry of the batch's picks."""
        ...
