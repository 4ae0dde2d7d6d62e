"""Reads GGUF: the header is believed only where the file bears it out, and each tensor is a span checked against it."""

import math
import re
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from quant.checkpoint import OpenFile, Plane, Tensor
from quant.errors import ModelFormatError, UnsupportedModel
from quant.formats import BY_GGUF, UNDECODED
from quant.gguf_metadata import Cursor, Metadata, WindowTooSmall, walk

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 16
MAX_TENSORS, MAX_NAME, MAX_DIMS, MAX_PARTS = 1 << 16, 255, 4, 512

# A header with a big vocabulary takes 8 MB. One that runs beyond a window is read again with the next.
WINDOWS = (1 << 24, 1 << 27)

_HEAD = struct.Struct("<4sI")
_COUNTS = struct.Struct("<QQ")
_DIMS = struct.Struct("<I")
_EXTENTS = [struct.Struct(f"<{n}Q") for n in range(MAX_DIMS + 1)]
_TYPE_OFFSET = struct.Struct("<IQ")
_LEAST_TENSOR = 8 + 4 + 8 + 12  # an empty name, one dimension
PART = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFFile:
    """A GGUF model of one file or of split files; opening any part opens them all.

    Every tensor lies wholly inside its file, aligned, and overlaps no other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as undo:
            parts = _open_parts(path, undo)
            self.metadata: Metadata = parts[0].metadata
            self.tensors: Mapping[str, Tensor] = _merge(parts)
            self._files = undo.pop_all()

    @property
    def statement(self) -> bytes:
        return self.metadata.raw

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Part:
    """One file of a model."""

    file: OpenFile
    metadata: Metadata
    tensors: tuple[Tensor, ...]


def _open_parts(path: Path, undo: ExitStack) -> list[Part]:
    opened = _open_part(path, undo)
    count = opened.metadata.integer("split.count", 1)
    if count <= 1:
        return [opened]
    number = opened.metadata.integer("split.no")
    name = PART.fullmatch(path.name)
    if not 0 <= number < count <= MAX_PARTS:
        raise ModelFormatError(path, f"claims to be part {number + 1} of {count}; at most {MAX_PARTS} parts are read")
    if name is None or (int(name["no"]), int(name["count"])) != (number + 1, count):
        raise ModelFormatError(path, f"is part {number + 1} of {count} and is not named -{number + 1:05}-of-{count:05}")
    paths = [path.with_name(f"{name['stem']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    parts = [opened if i == number else _open_part(p, undo) for i, p in enumerate(paths)]
    for i, part in enumerate(parts):
        said = part.metadata.integer("split.no"), part.metadata.integer("split.count")
        if said != (i, count):
            raise ModelFormatError(part.file.path, f"claims to be part {said[0] + 1} of {said[1]}")
    return parts


def _open_part(path: Path, undo: ExitStack) -> Part:
    file = OpenFile(path)
    undo.callback(file.close)
    for window in WINDOWS:
        data = file.read(0, min(window, file.size)).tobytes()
        try:
            return _read_part(file, Cursor(path, data, file.size))
        except WindowTooSmall:
            continue
    raise ModelFormatError(path, f"a header of more than {WINDOWS[-1]} bytes")


def _read_part(file: OpenFile, cursor: Cursor) -> Part:
    _check_version(cursor)
    tensors, keys = cursor.take(_COUNTS)
    if tensors > min(MAX_TENSORS, (cursor.size - cursor.at) // _LEAST_TENSOR):
        cursor.refuse(f"{tensors} tensors; the file has no room for them or they are more than {MAX_TENSORS}")
    entries = walk(cursor, keys)
    # Offsets of strings stay valid in the shorter copy, and the window's rest is given back.
    metadata = Metadata(file.path, cursor.data[: cursor.at], entries)
    alignment = _alignment(metadata)
    stated = [_Stated.read(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    placed = tuple(s.place(file, start, alignment) for s in stated)
    _check_overlaps(file, placed)
    return Part(file, metadata, placed)


def _check_version(cursor: Cursor) -> None:
    if cursor.data[:4] != MAGIC:
        cursor.refuse("not a GGUF file")
    _, version = cursor.take(_HEAD)
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModel(cursor.path, "a big-endian GGUF file")
    raise UnsupportedModel(cursor.path, f"GGUF version {version}; versions 2 and 3 are read")


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", ALIGNMENT)
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ModelFormatError(
            metadata.path, f"general.alignment is {alignment}, not a power of two from 8 to {MAX_ALIGNMENT}"
        )
    return alignment


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the header says of a tensor, before any of it is believed."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        name = cursor.text(MAX_NAME, "tensor name")
        (dims,) = cursor.take(_DIMS)
        if not 1 <= dims <= MAX_DIMS:
            cursor.refuse(f"tensor {name!r} has {dims} dimensions, not 1 to {MAX_DIMS}")
        extents = cursor.take(_EXTENTS[dims])  # innermost first
        return cls(name, tuple(reversed(extents)), *cursor.take(_TYPE_OFFSET))

    def place(self, file: OpenFile, start: int, alignment: int) -> Tensor:
        """The tensor, in a file whose data begins at `start`."""
        if self.type in UNDECODED:
            raise UnsupportedModel(file.path, f"tensor {self.name!r} is {UNDECODED[self.type]}, which is not decoded")
        if self.type not in BY_GGUF:
            raise ModelFormatError(file.path, f"tensor {self.name!r} has the unknown type {self.type}")
        row = BY_GGUF[self.type]
        if 0 in self.shape:
            raise ModelFormatError(file.path, f"tensor {self.name!r} has the empty shape {self.shape}")
        if self.shape[-1] % row.values:
            raise ModelFormatError(
                file.path, f"tensor {self.name!r} has rows of {self.shape[-1]}, not whole {row.name} blocks"
            )
        if self.offset % alignment:
            raise ModelFormatError(file.path, f"tensor {self.name!r} is not aligned to {alignment} bytes")
        at, nbytes = start + self.offset, math.prod(self.shape) // row.values * row.bytes
        if at + nbytes > file.size:
            raise ModelFormatError(
                file.path, f"tensor {self.name!r} takes bytes {at} to {at + nbytes} of a file of {file.size}"
            )
        plane = Plane(file, at, nbytes, row.name if row.dense else "u8")
        return Tensor(self.name, self.shape, row, (plane,))


def _check_overlaps(file: OpenFile, tensors: tuple[Tensor, ...]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda t: t.planes[0].offset):
        plane = tensor.planes[0]
        if plane.offset < end:
            raise ModelFormatError(file.path, f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = plane.offset + plane.nbytes, tensor.name


def _merge(parts: list[Part]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise ModelFormatError(part.file.path, f"tensor {tensor.name!r} occurs twice")
            tensors[tensor.name] = tensor
    metadata = parts[0].metadata
    due = metadata.integer("split.tensors.count", len(tensors)) if len(parts) > 1 else len(tensors)
    if due != len(tensors):
        raise ModelFormatError(metadata.path, f"its parts hold {len(tensors)} tensors; {due} are stated")
    return tensors
