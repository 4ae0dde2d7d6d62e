"""y = x @ weights.T on the Apple GPU, weights read as the file has them: a kernel for few rows of x and one for many.

`Few` serves 1 to 32 rows (decode, verification of drafts), `Many` prompts. What a pass is for settles which serves it,
never its number of rows: each gives a row the same bits alone and in any batch, but the two round differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.metal.kernel import Input, Kernel, Output, Size, Template, Value, text
from quant.formats import FORMATS, Affine, Format

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FLOATS = ("float32", "float16", "bfloat16")
# The most that rounding to a type changes a number, relative, and where it is less than normal, absolute.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
UNDERFLOW = {"float32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126}


@dataclass(frozen=True)
class Reading:
    """How kernels read one kind of weights (N, K): arrays, text, parameters.

    `multiple` divides K; a lane takes `piece` weights of a row at a time. A weight in a register has every bit of what
    quant/decode.py makes of it.
    """

    name: str
    inputs: tuple[Input, ...]
    header: str
    body: str
    template: tuple[tuple[str, Value], ...]
    multiple: int
    piece: int
    scales_every: int  # weights for one number of the smallest array
    heavy: bool  # takes so many registers that a simdgroup owns two rows instead of four

    def supports(self, rows: int, cols: int) -> bool:
        """An array of fewer than 8 elements would come to the kernel in another kind of memory."""
        return rows > 0 and cols > 0 and cols % self.multiple == 0 and rows * cols // self.scales_every >= 8


@cache
def reading(row: Format | Affine, scales: str = "float16") -> Reading:
    """How to read a format of the table; of an affine one also the dtype of scales and biases."""
    return _planes(row, scales) if isinstance(row, Affine) else _dense(row) if row.dense else _blocks(row)


_HEADERS = {
    "formats_k.h": ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    "formats_32.h": ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
    "formats_book.h": ("iq4_nl", "iq4_xs", "mxfp4"),
}
_HEADER_OF = {name: header for header, names in _HEADERS.items() for name in names}
_HEAVY = ("q3_k", "q5_k", "q6_k", "q8_0", "iq4_xs")
_DENSE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _blocks(row: Format) -> Reading:
    header = _HEADER_OF[row.name]
    layouts = "".join(layout(FORMATS[name]) for name in _HEADERS[header])
    return Reading(
        name=row.name,
        inputs=(Input("blocks", "uint8"),),
        header=text("formats.h") + layouts + text(header),
        body=text("matmul_blocks.metal"),
        template=(("FORMAT", row.gguf),),
        multiple=row.values,
        piece=16 if row.values == 32 else 32,
        scales_every=row.values,
        heavy=row.name in _HEAVY,
    )


def _planes(row: Affine, scales: str) -> Reading:
    return Reading(
        name=f"affine_{scales}",
        inputs=(Input("words", "uint32"), Input("scales", "S"), Input("biases", "S")),
        header=text("formats.h") + text("formats_planes.h"),
        body=text("matmul_planes.metal"),
        template=(("BITS", row.bits), ("GROUP", row.group), ("S", scales)),
        multiple=row.group,
        piece=32,
        scales_every=row.group,
        heavy=row.bits > 4,
    )


def _dense(row: Format) -> Reading:
    return Reading(
        name=row.name,
        inputs=(Input("values", "V"),),
        header=text("formats.h") + text("formats_planes.h"),
        body=text("matmul_dense.metal"),
        template=(("V", _DENSE[row.name]),),
        multiple=8,
        piece=8,
        scales_every=1,
        heavy=False,
    )


def layout(row: Format) -> str:
    """A row of the table of formats in Metal's language: sizes, offsets of fields, numbers of a code book."""
    offsets, at = [], 0
    for field in row.fields:
        offsets.append(f"{field.name} = {at}")
        at += field.bytes
    sizes = ", ".join([f"VALUES = {row.values}", f"BYTES = {row.bytes}", *offsets])
    if not row.codebook:
        return f"template <>\nstruct Layout<{row.gguf}> {{  // {row.name}\n  enum {{ {sizes} }};\n}};\n"
    numbers = ", ".join(f"{number}.0f" for number in row.codebook)
    return (
        f"constant float book_{row.gguf}[{len(row.codebook)}] = {{{numbers}}};\n"
        f"template <>\nstruct Layout<{row.gguf}> {{  // {row.name}\n  enum {{ {sizes} }};\n"
        f"  static float number(uint code) {{\n    return book_{row.gguf}[code];\n  }}\n}};\n"
    )


@dataclass(frozen=True)
class Plan:
    """One dispatch: everything about it that shapes decide."""

    template: Template
    grid: Size
    threadgroup: Size
    shape: tuple[int, int]  # of y


_SIMD = 32
_SIMDGROUPS = 2
_TILES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Few:
    """1 to 32 rows of x. Weights are read once for each tile of up to 8 rows.

    How many rows of weights a simdgroup owns (1, 2 or 4) changes the speed and no bit.
    """

    reading: Reading
    owned: int
    dtype: str = "float32"  # of x and y

    @property
    def kernel(self) -> Kernel:
        return _kernel("few", self.reading, ("SIMDGROUPS", "ROWS", "TILE"))

    def supports(self, rows: int, weight_rows: int, cols: int) -> bool:
        return 1 <= rows <= 32 and self.reading.supports(weight_rows, cols)

    def plan(self, rows: int, weight_rows: int) -> Plan:
        """The least tile that holds all rows of x, or the largest. Few weight rows are dealt out to more simdgroups."""
        tile = next((tile for tile in _TILES if rows <= tile), _TILES[-1])
        owned = 2 if self.reading.heavy or weight_rows < 2048 else 4
        across, down = -(-rows // tile), -(-weight_rows // (owned * _SIMDGROUPS))
        return Plan(
            template={
                "X": self.dtype,
                **dict(self.reading.template),
                "SIMDGROUPS": _SIMDGROUPS,
                "ROWS": owned,
                "TILE": tile,
            },
            grid=(across * _SIMD * _SIMDGROUPS, down, 1),
            threadgroup=(_SIMD * _SIMDGROUPS, 1, 1),
            shape=(rows, weight_rows),
        )

    def bound(self, x: F32, decoded: F32) -> F64:
        """The most that y may err: a lane's chain of fmas and five additions round, weights and products do not."""
        cols = x.shape[1]
        roundings = -(-cols // (_SIMD * self.reading.piece)) * self.reading.piece + 5
        return _rounded(self.dtype, x, decoded, _grown(roundings) * _sizes(x, decoded))


@dataclass(frozen=True)
class Many:
    """Any number of rows of x, in tiles of 64. x and weights are rounded to the types of their tiles."""

    reading: Reading
    dtype: str = "float32"
    tile_x: str = "float32"
    tile_weights: str = "float16"

    @property
    def kernel(self) -> Kernel:
        return _kernel("many", self.reading, ("EX", "EW"))

    def supports(self, rows: int, weight_rows: int, cols: int) -> bool:
        return rows >= 1 and self.reading.supports(weight_rows, cols)

    def plan(self, rows: int, weight_rows: int) -> Plan:
        return Plan(
            template={"X": self.dtype, **dict(self.reading.template), "EX": self.tile_x, "EW": self.tile_weights},
            grid=(-(-rows // 64) * _SIMD * 4, -(-weight_rows // 64), 1),
            threadgroup=(_SIMD * 4, 1, 1),
            shape=(rows, weight_rows),
        )

    def bound(self, x: F32, decoded: F32) -> F64:
        """The roundings to tiles, and K products and sums in an order that the matrix unit does not tell."""
        relative = (1 + ROUNDING[self.tile_x]) * (1 + ROUNDING[self.tile_weights]) - 1
        least_x, least_w = UNDERFLOW[self.tile_x], UNDERFLOW[self.tile_weights]
        ax, aw = np.abs(x).astype(np.float64), np.abs(decoded).astype(np.float64)
        tiles = (ax * (1 + ROUNDING[self.tile_x]) + least_x) @ (aw * (1 + ROUNDING[self.tile_weights]) + least_w).T
        under = ax.sum(1)[:, None] * least_w * 2 + aw.sum(1) * least_x * 2
        sums = _grown(x.shape[1] + 1) * tiles
        return _rounded(self.dtype, x, decoded, relative * _sizes(x, decoded) + under + sums)


def few(reading: Reading, weight_rows: int, dtype: str = "float32") -> list[Few]:
    """Candidates, the likeliest first. More rows share each read of x; fewer make more simdgroups of a small matrix.

    A format that takes many registers has half the rows.
    """
    likely = 2 if reading.heavy or weight_rows < 2048 else 4
    return [Few(reading, owned, dtype) for owned in sorted((1, 2, 4), key=lambda owned: abs(owned - likely))]


def many(reading: Reading, dtype: str = "float32") -> list[Many]:
    """Candidates, the least rounding first. x is put into no type of less range than its own: float16 ends at 65504."""
    narrow = [(dtype, dtype)] if dtype != "float32" else []
    return [Many(reading, dtype, *tiles) for tiles in [("float32", "float32"), ("float32", "float16"), *narrow]]


def launch(product: Few | Many, x: mx.array, weights: Sequence[mx.array], stream: mx.Stream | None = None) -> mx.array:
    """y (T, N) of x (T, K), in the dtype of x."""
    plan = product.plan(x.shape[0], weights[0].shape[0])
    made = product.kernel.launch([x, *weights], plan.template, plan.grid, plan.threadgroup, [plan.shape], stream=stream)
    return made[0]


def reference(x: F32, decoded: F32) -> F64:
    """y in float64, of weights as quant/decode.py makes them."""
    y: F64 = x.astype(np.float64) @ decoded.astype(np.float64).T
    return y


@cache
def _kernel(way: str, reading: Reading, extra: tuple[str, ...]) -> Kernel:
    return Kernel(
        name=f"matmul_{way}_{reading.name}",
        inputs=(Input("x", "X"), *reading.inputs),
        outputs=(Output("y", "X"),),
        header=reading.header + text(f"matmul_{way}.h"),
        body=reading.body + text(f"matmul_{way}.metal"),
        template=("X", *(name for name, _ in reading.template), *extra),
    )


def _sizes(x: F32, decoded: F32) -> F64:
    """The sum of the sizes of the products of each y: what a rounding is relative to."""
    return reference(np.abs(x), np.abs(decoded))


def _grown(roundings: int) -> float:
    """How much a number may be off after so many roundings of float32, relative to the parts it was made of."""
    return roundings * 2.0**-24 / (1 - roundings * 2.0**-24)


def _rounded(dtype: str, x: F32, decoded: F32, error: F64) -> F64:
    """The same after y is rounded to its dtype, and where the machine takes denormal numbers for zeros.

    A scale may be denormal too: of MXFP4 at 2**-128, times 12.
    """
    flushed = np.abs(x).astype(np.float64).sum(1)[:, None] * 2.0**-124 + (x.shape[1] + 32) * 2.0**-126
    sizes = np.abs(reference(x, decoded)) + error
    last = 0.0 if dtype == "float32" else ROUNDING[dtype]
    bound: F64 = error + flushed + last * sizes + UNDERFLOW[dtype]
    return bound
