"""Random matrices in every format of the table, as a file holds them, packed, and decoded by the reference."""

import tempfile
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine import _native
from quant.decode import dequantise, dequantise_affine
from quant.formats import AFFINE, FORMATS, NUMPY, Format

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A row of the table, and for affine rows the type of scales and biases."""

    name: str
    scales: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.scales}" if self.scales else self.name

    @property
    def group(self) -> int:
        """The columns of a matrix are a multiple of this."""
        return AFFINE[self.name].group if self.scales else FORMATS[self.name].values


KINDS = [Kind(name) for name in FORMATS] + [Kind(name, scales) for name in AFFINE for scales in ("f16", "bf16", "f32")]


@dataclass(frozen=True)
class Plane:
    data: bytes
    dtype: str


@dataclass(frozen=True)
class Weights:
    """A matrix (rows, cols) in a format, as planes of a file and as the reference decodes it."""

    kind: Kind
    planes: tuple[Plane, ...]
    decoded: F32 = field(repr=False)  # (rows, cols)

    def pack(self) -> _native.Panels:
        rows, cols = self.decoded.shape
        with tempfile.TemporaryFile() as file:
            file.write(b"header")
            spans = []
            for plane in self.planes:
                spans.append((file.fileno(), file.tell(), len(plane.data), plane.dtype))
                file.write(plane.data)
            file.flush()
            return _native.pack(spans, self.kind.name, rows, cols)

    @property
    def arrays(self) -> list[mx.array]:
        """The planes in memory, (rows, a row's part), each with the type of what is in it."""
        name = self.kind.name
        dense = name in FORMATS and FORMATS[name].dense
        return [_array(plane.data, name if dense else plane.dtype, len(self.decoded)) for plane in self.planes]


def _array(data: bytes, dtype: str, rows: int) -> mx.array:
    raw = np.frombuffer(data, NUMPY[dtype]).reshape(rows, -1)
    array = mx.array(raw).view(mx.bfloat16) if dtype == "bf16" else mx.array(raw)
    mx.eval(array)
    return array


def weights(kind: Kind, rows: int, cols: int, seed: int = 0) -> Weights:
    rng = np.random.default_rng([seed, rows, cols])
    return _affine(kind, rows, cols, rng) if kind.scales else _blocks(kind, rows, cols, rng)


def _blocks(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> Weights:
    row = FORMATS[kind.name]
    count = rows * cols // row.values
    blocks = np.frombuffer(rng.bytes(count * row.bytes), row.record).copy()
    for name, values in _numbers(row, rng, count):
        blocks[name] = values
    raw = blocks.tobytes()
    return Weights(kind, (Plane(raw, "u8"),), dequantise(raw, kind.name).reshape(rows, cols))


def _numbers(row: Format, rng: np.random.Generator, count: int) -> list[tuple[str, npt.NDArray[np.generic]]]:
    """Fields that are numbers, of sizes such as weights have; among them a denormal half, and a zero."""
    fields: list[tuple[str, npt.NDArray[np.generic]]] = []
    for part in row.fields:
        values = rng.standard_normal(count, np.float32) * np.float32(0.02)
        if part.dtype == "f16":
            values[:2] = 3e-7, 0
            fields.append((part.name, values.astype(np.float16)))
        elif part.dtype == "bf16":
            fields.append((part.name, (values.view(np.uint32) >> 16).astype(np.uint16)))
        elif part.dtype == "f32":
            fields.append((part.name, values))
        elif part.name == "e":
            exponents = rng.integers(110, 130, count).astype(np.uint8)
            exponents[:2] = 0, 1  # the two that are denormal in float32
            fields.append((part.name, exponents))
    return fields


def _affine(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> Weights:
    row = AFFINE[kind.name]
    words = np.frombuffer(rng.bytes(rows * cols * row.bits // 8), np.uint32).reshape(rows, -1)
    scales, biases = (rng.standard_normal((rows, cols // row.group), np.float32) * np.float32(0.02) for _ in range(2))
    kept = [_stored(numbers, kind.scales) for numbers in (scales, biases)]
    read = [_read(raw, kind.scales, scales.shape) for raw in kept]
    decoded = dequantise_affine(words, read[0], read[1], row)
    planes = (Plane(words.tobytes(), "u32"), *(Plane(raw, kind.scales) for raw in kept))
    return Weights(kind, planes, decoded.reshape(rows, cols))


def _stored(numbers: F32, dtype: str) -> bytes:
    if dtype == "bf16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return numbers.astype({"f16": np.float16, "f32": np.float32}[dtype]).tobytes()


def _read(raw: bytes, dtype: str, shape: tuple[int, ...]) -> F32:
    if dtype == "bf16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(raw, {"f16": np.float16, "f32": np.float32}[dtype]).astype(np.float32).reshape(shape)
