"""Panels of matrices that lie in memory as a GPU reads them: made when the CPU needs them, and soon dropped."""

from typing import Protocol, cast

import mlx.core as mx

from engine import _native
from models.ops import Matrix


class Lying(Matrix, Protocol):
    """A matrix of builtin_weights or metal/products: its arrays, and which row of the formats' tables they are in."""

    @property
    def arrays(self) -> tuple[mx.array, ...]: ...
    @property
    def form(self) -> str: ...


def borrowed(matrix: Matrix, room: _native.Room | None = None) -> _native.Panels:
    """The whole matrix, bit for bit what the GPU has."""
    lying = cast(Lying, matrix)
    return _native.pack_arrays(lying.arrays, lying.form, lying.rows, lying.cols, room)


def rows_of(matrix: Matrix, rows: mx.array, stream: mx.Stream) -> _native.Panels:
    """Some rows (T,) of it, in this order: of an embedding nobody needs more."""
    lying = cast(Lying, matrix)
    picked = [mx.take(array, rows, axis=0, stream=stream) for array in lying.arrays]
    mx.eval(picked)
    return _native.pack_arrays(picked, lying.form, len(rows), lying.cols)
