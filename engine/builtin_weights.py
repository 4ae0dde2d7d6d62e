"""Weights for MLX's own kernels: affine quantisation where it says a format exactly, the rest decoded once."""

import logging
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.builtin_repack import AFFINE, packed
from models.ops import Matrix
from quant.checkpoint import Checkpoint, Plane, Tensor
from quant.formats import Affine, Format

_log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_MLX_DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
_FORMS = {dtype: name for name, dtype in _MLX_DTYPES.items()}


class BuiltinMatrix(Matrix, Protocol):
    """A matrix that MLX multiplies with."""

    @property
    def arrays(self) -> tuple[mx.array, ...]: ...
    @property
    def form(self) -> str:
        """The row of the tables of formats in which the arrays lie."""
        ...

    def times(self, x: mx.array) -> mx.array:
        """x @ matrix.T, in the dtype of x."""
        ...

    def at(self, rows: mx.array) -> mx.array:
        """These rows, (T, cols)."""
        ...


@dataclass(frozen=True)
class Dense:
    values: mx.array  # (rows, cols)

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def cols(self) -> int:
        return self.values.shape[1]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.values,)

    @property
    def form(self) -> str:
        return _FORMS[self.values.dtype]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def times(self, x: mx.array) -> mx.array:
        return (x.astype(self.values.dtype) @ self.values.T).astype(x.dtype)

    def at(self, rows: mx.array) -> mx.array:
        return self.values[rows]


@dataclass(frozen=True)
class Quantised:
    """A weight is scale * code + bias; scales and biases (rows, groups) are exactly those of the file."""

    words: mx.array  # (rows, cols * bits / 32) u32
    scales: mx.array
    biases: mx.array
    format: Affine

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def cols(self) -> int:
        return self.scales.shape[1] * self.format.group

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.words, self.scales, self.biases

    @property
    def form(self) -> str:
        return self.format.name

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def times(self, x: mx.array) -> mx.array:
        product = mx.quantized_matmul(
            x.astype(self.scales.dtype),
            self.words,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.format.group,
            bits=self.format.bits,
        )
        return product.astype(x.dtype)

    def at(self, rows: mx.array) -> mx.array:
        return mx.dequantize(
            self.words[rows],
            self.scales[rows].astype(mx.float32),
            self.biases[rows].astype(mx.float32),
            group_size=self.format.group,
            bits=self.format.bits,
        )


def activation_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """What activations are best kept in: the dtype that most bytes of this model's dense numbers and scales are in.

    Blocks of GGUF keep their scales in float16.
    """
    votes = dict.fromkeys(_MLX_DTYPES, 0)
    for tensor in checkpoint.tensors.values():
        for plane in tensor.planes:
            dtype = "f16" if plane.dtype == "u8" else plane.dtype
            if len(tensor.shape) > 1 and dtype in votes:
                votes[dtype] += plane.nbytes
    return _MLX_DTYPES[max(votes, key=votes.__getitem__)]


def device_bytes(checkpoint: Checkpoint, dtype: mx.Dtype) -> int:
    """The most that BuiltinLoader makes of a checkpoint's matrices: what it decodes outgrows the file."""
    return sum(_device_bytes(tensor, dtype) for tensor in checkpoint.tensors.values())


def _device_bytes(tensor: Tensor, dtype: mx.Dtype) -> int:
    row = tensor.format if isinstance(tensor.format, Affine) else _affine_of(tensor.format)
    if row is None or len(tensor.shape) == 1:
        return tensor.size * (dtype.size if len(tensor.shape) > 1 else 4)
    return tensor.size * row.bits // 8 + tensor.size // row.group * 2 * 4  # scale and bias in float32 at the most


def _affine_of(row: Format) -> Affine | None:
    return AFFINE[row.name].format if row.name in AFFINE else None


class BuiltinLoader:
    """Dense weights come in `dtype`; scales too where that keeps them exact, else in float32."""

    def __init__(self, dtype: mx.Dtype) -> None:
        self.dtype = dtype

    def vector(self, tensor: Tensor) -> mx.array:
        return mx.array(tensor.values())

    def matrix(self, tensor: Tensor) -> BuiltinMatrix:
        matrix = self._matrix(tensor)
        mx.eval(*matrix.arrays)  # so that numpy's copy is gone before the next matrix comes
        return matrix

    def _matrix(self, tensor: Tensor) -> BuiltinMatrix:
        if isinstance(tensor.format, Affine):
            return self._planar(tensor, tensor.format)
        if tensor.format.dense:
            return Dense(_array(tensor.planes[0]).reshape(tensor.shape).astype(self.dtype))
        if tensor.format.name in AFFINE:
            return self._repacked(tensor, tensor.format)
        _log.warning("%s: no kernel for %s; kept as %s", tensor.name, tensor.format.name, self.dtype)
        return Dense(mx.array(tensor.values()).astype(self.dtype))

    def _planar(self, tensor: Tensor, row: Affine) -> Quantised:
        words, scales, biases = (_array(plane).reshape(tensor.shape[0], -1) for plane in tensor.planes)
        exact = self.dtype if scales.dtype == self.dtype else mx.float32
        return Quantised(words, scales.astype(exact), biases.astype(exact), row)

    def _repacked(self, tensor: Tensor, row: Format) -> Quantised:
        target = AFFINE[row.name]
        rows, cols = tensor.shape
        blocks = tensor.planes[0].read().view(row.record).reshape(rows, -1)  # (rows, cols / values)
        words = np.empty((rows, cols * target.format.bits // 32), np.uint32)
        scales = np.empty((rows, cols // target.format.group), np.float32)
        biases = np.empty_like(scales)
        for at in range(0, rows, _ROWS_AT_ONCE):
            part = slice(at, at + _ROWS_AT_ONCE)
            codes, scale, bias = target.split(blocks[part].reshape(-1))
            words[part] = packed(codes.reshape(-1, cols), target.format.bits)
            scales[part], biases[part] = scale.reshape(-1, scales.shape[1]), bias.reshape(-1, scales.shape[1])
        exact = mx.float32
        if self.dtype == mx.float16 and _survives_half(scales) and _survives_half(biases):
            exact = mx.float16
        return Quantised(mx.array(words), mx.array(scales).astype(exact), mx.array(biases).astype(exact), target.format)


_ROWS_AT_ONCE = 1024  # bounds what repacking needs beside the matrix itself


def _array(plane: Plane) -> mx.array:
    raw = plane.read()
    if plane.dtype == "bf16":
        return mx.array(raw.view(np.uint16)).view(mx.bfloat16)
    return mx.array(raw.view({"u32": np.uint32, "f16": np.float16, "f32": np.float32}[plane.dtype]))


def _survives_half(values: Floats) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())
