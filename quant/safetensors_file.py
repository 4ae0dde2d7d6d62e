"""Reads the header of a safetensors file: which tensor lies where, checked against the file."""

import math
import struct
from dataclasses import dataclass
from typing import Any

from quant.checkpoint import OpenFile, Plane
from quant.errors import ModelFormatError, UnsupportedModel
from quant.json_file import parse_json

# A header takes about 120 bytes a tensor; this is room for 100,000 of them.
MAX_HEADER = 1 << 24

_LENGTH = struct.Struct("<Q")
# Our names of the dtypes that a model we run may hold, and their bytes.
DTYPES = {"F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2), "U32": ("u32", 4)}


@dataclass(frozen=True)
class Stored:
    """A tensor as safetensors keeps it: a shape and one plane."""

    shape: tuple[int, ...]
    plane: Plane


def stored_tensors(file: OpenFile) -> dict[str, Stored]:
    """The tensors of a file. Together they fill its data exactly, and none shares a byte with another."""
    header, start = _header(file)
    notes = header.pop("__metadata__", None)  # MLX writes null where it has none
    if notes is not None and (type(notes) is not dict or not all(type(note) is str for note in notes.values())):
        raise ModelFormatError(file.path, "its __metadata__ is not a map of strings")
    tensors = {name: _stored(file, name, row, start) for name, row in header.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda t: (t[1].plane.offset, t[1].plane.nbytes)):
        if tensor.plane.offset != end:
            raise ModelFormatError(file.path, f"tensor {name!r} begins at byte {tensor.plane.offset}, not at {end}")
        end += tensor.plane.nbytes
    if end != file.size:
        raise ModelFormatError(file.path, f"its tensors end at byte {end}, the file at {file.size}")
    return tensors


def _header(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The header and the place where the data begins."""
    if file.size < _LENGTH.size:
        raise ModelFormatError(file.path, f"truncated: {file.size} bytes")
    (length,) = _LENGTH.unpack(file.read(0, _LENGTH.size).tobytes())
    if length > min(MAX_HEADER, file.size - _LENGTH.size):
        raise ModelFormatError(file.path, f"a header of {length} bytes in a file of {file.size}; at most {MAX_HEADER}")
    return parse_json(file.path, file.read(_LENGTH.size, length).tobytes()), _LENGTH.size + length


def _stored(file: OpenFile, name: str, row: Any, start: int) -> Stored:
    match row:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if _sizes([*shape, begin, end]):
            pass
        case _:
            raise ModelFormatError(file.path, f"tensor {name!r} is not described by a dtype, a shape and two offsets")
    if dtype not in DTYPES:
        raise UnsupportedModel(file.path, f"tensor {name!r} is {dtype!r}, which is not decoded")
    ours, width = DTYPES[dtype]
    if 0 in shape:
        raise ModelFormatError(file.path, f"tensor {name!r} has the empty shape {shape}")
    if not 0 <= begin <= end <= file.size - start or end - begin != math.prod(shape) * width:
        raise ModelFormatError(file.path, f"tensor {name!r} of shape {shape} takes bytes {begin} to {end} of the data")
    return Stored(tuple(shape), Plane(file, start + begin, end - begin, ours))


def _sizes(numbers: list[Any]) -> bool:
    # JSON's true is an int to Python; more dimensions than eight would only feed the product.
    return len(numbers) <= 10 and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
