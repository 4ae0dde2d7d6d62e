"""The table of weight formats: each row states its sizes, the fields are checked against them, the rest is derived."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# What a field may be made of. numpy has no bfloat16, so its bits are carried as an unsigned integer.
NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "u32": "<u4", "u16": "<u2", "u8": "u1", "i8": "i1"}


@dataclass(frozen=True)
class Field:
    """`count` values of one kind, in file order inside a block."""

    name: str
    dtype: str
    count: int

    @property
    def bytes(self) -> int:
        return self.count * np.dtype(NUMPY[self.dtype]).itemsize


@dataclass(frozen=True)
class Format:
    """A GGUF block: `values` weights of one row in `bytes` bytes. Dense formats are blocks of one value."""

    name: str
    gguf: int
    values: int
    bytes: int
    fields: tuple[Field, ...]
    codebook: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.bytes == sum(f.bytes for f in self.fields), f"{self.name}: the fields do not fill the block"

    @property
    def dense(self) -> bool:
        return self.values == 1

    @cached_property
    def record(self) -> np.dtype[Any]:
        """The block as a packed numpy record."""
        return np.dtype([(f.name, NUMPY[f.dtype], (f.count,) if f.count > 1 else ()) for f in self.fields])


@dataclass(frozen=True)
class Affine:
    """MLX's planar format: `bits` per weight in a plane of words, a scale and a bias for each `group` of a row.

    A row of words is one stream of bits, least significant first; a weight is scale * code + bias.
    """

    bits: int
    group: int

    @property
    def name(self) -> str:
        return f"affine{self.bits}_{self.group}"


def _row(
    name: str, gguf: int, values: int, size: int, *fields: tuple[str, str, int], codebook: tuple[int, ...] = ()
) -> Format:
    return Format(name, gguf, values, size, tuple(Field(*f) for f in fields), codebook)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# The OCP e2m1 values, doubled so that they are whole; the block's scale is halved in return.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

# fmt: off
_ROWS = (
    _row("f32", 0, 1, 4, ("v", "f32", 1)),
    _row("f16", 1, 1, 2, ("v", "f16", 1)),
    _row("bf16", 30, 1, 2, ("v", "bf16", 1)),
    _row("q4_0", 2, 32, 18, ("d", "f16", 1), ("qs", "u8", 16)),
    _row("q4_1", 3, 32, 20, ("d", "f16", 1), ("m", "f16", 1), ("qs", "u8", 16)),
    _row("q5_0", 6, 32, 22, ("d", "f16", 1), ("qh", "u8", 4), ("qs", "u8", 16)),
    _row("q5_1", 7, 32, 24, ("d", "f16", 1), ("m", "f16", 1), ("qh", "u8", 4), ("qs", "u8", 16)),
    _row("q8_0", 8, 32, 34, ("d", "f16", 1), ("qs", "i8", 32)),
    _row("q2_k", 10, 256, 84, ("scales", "u8", 16), ("qs", "u8", 64), ("d", "f16", 1), ("dmin", "f16", 1)),
    _row("q3_k", 11, 256, 110, ("hmask", "u8", 32), ("qs", "u8", 64), ("scales", "u8", 12), ("d", "f16", 1)),
    _row("q4_k", 12, 256, 144, ("d", "f16", 1), ("dmin", "f16", 1), ("scales", "u8", 12), ("qs", "u8", 128)),
    _row("q5_k", 13, 256, 176,
         ("d", "f16", 1), ("dmin", "f16", 1), ("scales", "u8", 12), ("qh", "u8", 32), ("qs", "u8", 128)),
    _row("q6_k", 14, 256, 210, ("ql", "u8", 128), ("qh", "u8", 64), ("scales", "i8", 16), ("d", "f16", 1)),
    _row("iq4_nl", 20, 32, 18, ("d", "f16", 1), ("qs", "u8", 16), codebook=_IQ4),
    _row("iq4_xs", 23, 256, 136,
         ("d", "f16", 1), ("scales_h", "u16", 1), ("scales_l", "u8", 4), ("qs", "u8", 128), codebook=_IQ4),
    _row("mxfp4", 39, 32, 17, ("e", "u8", 1), ("qs", "u8", 16), codebook=_E2M1),
)
# fmt: on

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
BY_GGUF: dict[int, Format] = {row.gguf: row for row in _ROWS}
AFFINE: dict[str, Affine] = {
    row.name: row for row in (Affine(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128))
}
# The enumerator that the generated header gives to each row.
NUMBER: dict[str, int] = {name: i for i, name in enumerate([*FORMATS, *AFFINE])}

# Types that a sound GGUF may hold and Puna does not decode: named, so that a refusal can say which it met.
UNDECODED: dict[int, str] = {
    9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s",
    24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 40: "nvfp4",
    41: "q1_0",
}  # fmt: skip
