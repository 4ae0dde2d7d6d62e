"""Weights on their way from files into the kernels' panels; each is read once and lies in memory once."""

import mlx.core as mx

from engine import _native
from models.ops import Matrix
from quant.checkpoint import Tensor
from quant.errors import ModelFormatError


class NativeLoader:
    """Packs matrices into panels, strip by strip straight from the file."""

    def matrix(self, tensor: Tensor) -> Matrix:
        rows, cols = tensor.shape
        planes = [(plane.file.fd, plane.offset, plane.nbytes, plane.dtype) for plane in tensor.planes]
        try:
            return _native.pack(planes, tensor.format.name, rows, cols)
        except RuntimeError as fault:
            raise ModelFormatError(tensor.planes[0].file.path, f"tensor {tensor.name}: {fault}") from fault

    def vector(self, tensor: Tensor) -> mx.array:
        return mx.array(tensor.values())


def panels(matrix: Matrix) -> _native.Panels:
    """The native form of a matrix, which on this device is the only one there is."""
    assert isinstance(matrix, _native.Panels), "a matrix of another device"
    return matrix
