"""What operations on the GPU are tried with: classes and launches, random matrices and rows to multiply by them."""

import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.candidates import Candidate, Doubles, Floats, Operation, T
from engine.metal.attention import Call
from engine.metal.matmul import reference
from quant.checkpoint import OpenFile, Plane, Tensor
from quant.formats import NUMPY, Affine, Format

Array = npt.NDArray[Any]


Launch = Callable[[Call, Sequence[mx.array]], list[mx.array]]

NAMES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32"}


def launched(call: Call, inputs: Sequence[mx.array]) -> list[mx.array]:
    return call.launch(*inputs)


class Phase(Enum):
    """What a row is computed for."""

    DECODE = "decode"
    PROMPT = "prompt"


class Chooser(Protocol):
    """A supervisor, of what matters here."""

    def choice(self, operation: Operation[T], /) -> Candidate[T]: ...


class Weights:
    """A random matrix, in a file that has no name any more. `held` keeps the forms that candidates make of it."""

    def __init__(self, row: Format | Affine, scales: str, rows: int, cols: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, rows, cols])
        parts = _planes(row, scales, rows, cols, rng)
        with tempfile.NamedTemporaryFile() as file:
            for _, data in parts:
                file.write(data)
            file.flush()
            opened = OpenFile(Path(file.name))
        weakref.finalize(self, opened.close)
        planes, at = [], 0
        for dtype, data in parts:
            planes.append(Plane(opened, at, len(data), dtype))
            at += len(data)
        self.tensor = Tensor(f"random {row.name}", (rows, cols), row, tuple(planes))
        self._held: dict[str, Any] = {}

    @cached_property
    def decoded(self) -> Floats:
        return self.tensor.values()

    def held(self, name: str, make: Callable[[Tensor], Any]) -> Any:
        if name not in self._held:
            self._held[name] = make(self.tensor)
        return self._held[name]


@dataclass(frozen=True)
class Product:
    """x (T, K) times weights (N, K), in a class. Numbers of x are such as its dtype has exactly."""

    name: str
    phase: Phase
    x: Floats
    weights: Weights

    @cached_property
    def exact(self) -> Doubles:
        return reference(self.x, self.weights.decoded)

    def alone(self, row: int) -> "Product":
        return replace(self, name=f"{self.name}, row {row} alone", x=self.x[row : row + 1])


def rounded(x: Floats, dtype: str) -> Floats:
    """To the nearest that float16 has; of bfloat16 and float32 toward zero, and as it is."""
    if dtype == "bfloat16":
        return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return x.astype(dtype).astype(np.float32)


def rows_for(weights: Weights, rows: int, dtype: str, seed: int = 0) -> Floats:
    """Random rows, of a size at which products are near one whatever the size of weights: no float16 overflows."""
    rng = np.random.default_rng([seed, rows])
    cols = weights.decoded.shape[1]
    size = np.sqrt(np.square(weights.decoded).mean(dtype=np.float64) * cols) or 1.0
    return rounded((rng.standard_normal((rows, cols)) / size).astype(np.float32), dtype)


def edges_for(weights: Weights, dtype: str) -> Floats:
    """Nothing, one weight alone, an outlier among small numbers, numbers that cancel."""
    x = rows_for(weights, 7, dtype, seed=1)
    x[0] = 0
    x[1:3] = 0
    x[1, 0] = x[2, -1] = 1
    x[3, x.shape[1] // 2] *= 64
    x[4, 1::2] = -x[4, ::2]
    x[5] *= np.float32(2.0**-6)
    return rounded(x, dtype)


def _planes(
    row: Format | Affine, scales: str, rows: int, cols: int, rng: np.random.Generator
) -> list[tuple[str, bytes]]:
    if isinstance(row, Affine):
        shape = (rows, cols // row.group)
        words = rng.bytes(rows * cols * row.bits // 8)
        step = _numbers(scales, shape, rng)
        return [("u32", words), (scales, step.tobytes()), (scales, _numbers(scales, shape, rng).tobytes())]
    blocks = np.frombuffer(rng.bytes(rows * cols // row.values * row.bytes), row.record).copy()
    for field in row.fields:
        if field.dtype in ("f32", "f16", "bf16"):
            blocks[field.name] = _numbers(field.dtype, (len(blocks),), rng)
        elif field.name == "e":  # an exponent
            blocks[field.name] = rng.integers(110, 130, len(blocks))
    return [(_DENSE.get(row.name, "u8"), blocks.tobytes())]


_DENSE = {"f32": "f32", "f16": "f16", "bf16": "bf16"}


def _numbers(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(NUMPY[dtype])
