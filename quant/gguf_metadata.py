"""The metadata of a GGUF file: walked once to find where values lie, decoded when asked for."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quant.errors import ModelFormatError

Value = int | float | bool | str | list[str] | NDArray[Any]

# The value types by their ids in the file.
NUMERIC = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
INTEGERS, REALS, BOOL, STRING, ARRAY = frozenset({0, 1, 2, 3, 4, 5, 10, 11}), frozenset({6, 12}), 7, 8, 9
NAMES = {
    0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string", 10: "u64", 11: "i64",
    12: "f64",
}  # fmt: skip

# Far above what any model has; they bound the time and memory that a hostile file can cost.
MAX_KEYS = 1 << 16
MAX_KEY = 1 << 10  # bytes
MAX_STRINGS = 1 << 22

_LENGTH = struct.Struct("<Q")
_KIND = struct.Struct("<I")
_ARRAY_HEAD = struct.Struct("<IQ")
_LEAST_ENTRY = 13  # an empty key's length, a type, one byte


class WindowTooSmall(Exception):
    """The header goes on beyond the bytes that were read of it; caught by the reader, which reads more."""


class Cursor:
    """A place in the first bytes of a file. It never passes the file's end."""

    def __init__(self, path: Path, data: bytes, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self.data, self.skip(layout.size))

    def skip(self, nbytes: int) -> int:
        """Moves on and gives the place that was left."""
        start = self.at
        self._reach(start + nbytes)
        return start

    def text(self, limit: int, what: str) -> str:
        (length,) = self.take(_LENGTH)
        if length > limit:
            self.refuse(f"{what} of {length} bytes at byte {self.at - 8}; at most {limit} are allowed")
        start = self.skip(length)
        return decoded(self.path, self.data[start : self.at], f"{what} at byte {start}")

    def skip_strings(self, count: int) -> None:
        """Moves over `count` strings; only their lengths are looked at, and this loop is what opening a file costs."""
        data, at, length_at = self.data, self.at, _LENGTH.unpack_from
        try:
            for _ in range(count):
                at += 8 + length_at(data, at)[0]
        except (struct.error, OverflowError):  # a length reached beyond the window, so the next one was not there
            at += 8
        self._reach(at)

    def refuse(self, fault: str) -> NoReturn:
        raise ModelFormatError(self.path, fault)

    def _reach(self, end: int) -> None:
        if end > self.size:
            self.refuse(f"truncated: byte {end} of the header lies beyond the file's {self.size}")
        if end > len(self.data):
            raise WindowTooSmall
        self.at = end


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a value lies in the header. A scalar has no count."""

    kind: int
    count: int | None
    start: int

    @property
    def described(self) -> str:
        return NAMES[self.kind] if self.count is None else f"array of {NAMES[self.kind]}"


def walk(cursor: Cursor, count: int) -> dict[str, Entry]:
    """The entries of `count` keys, each of them unique and within the file."""
    if count > min(MAX_KEYS, (cursor.size - cursor.at) // _LEAST_ENTRY):
        cursor.refuse(f"{count} metadata keys; the file has no room for them or they are more than {MAX_KEYS}")
    entries: dict[str, Entry] = {}
    for _ in range(count):
        key = cursor.text(MAX_KEY, "metadata key")
        if key in entries:
            cursor.refuse(f"metadata {key!r} occurs twice")
        entries[key] = _entry(cursor, key)
    return entries


def _entry(cursor: Cursor, key: str) -> Entry:
    (kind,) = cursor.take(_KIND)
    if kind == ARRAY:
        kind, count = cursor.take(_ARRAY_HEAD)
        entry = Entry(kind, count, cursor.at)
    else:
        count, entry = 1, Entry(kind, None, cursor.at)
    if kind == STRING:
        _check_count(cursor, key, count, 8, MAX_STRINGS)
        cursor.skip_strings(count)
    elif kind in NUMERIC:
        width = np.dtype(NUMERIC[kind]).itemsize
        _check_count(cursor, key, count, width, cursor.size)
        cursor.skip(count * width)
    elif kind == ARRAY:
        cursor.refuse(f"metadata {key!r} is an array of arrays")
    else:
        cursor.refuse(f"metadata {key!r} has the unknown type {kind}")
    return entry


def _check_count(cursor: Cursor, key: str, count: int, width: int, limit: int) -> None:
    if count > min(limit, (cursor.size - cursor.at) // width):
        cursor.refuse(f"metadata {key!r} claims {count} elements; the file has no room for them or they are too many")


def decoded(path: Path, raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise ModelFormatError(path, f"{what} is not UTF-8") from fault


class Metadata(Mapping[str, Value]):
    """Keys and values of a file. A getter gives the type that it names, or an error that names the file and the key.

    Big string arrays are decoded at every call of `strings`; keep what it gives.
    """

    def __init__(self, path: Path, data: bytes, entries: dict[str, Entry]) -> None:
        self.path = path
        self._data = data
        self._entries = entries

    def __getitem__(self, key: str) -> Value:
        entry = self._entries[key]
        if entry.kind == STRING:
            strings = self._strings(key, entry)
            return strings[0] if entry.count is None else strings
        numbers = self._numbers(key, entry)
        return numbers.item() if entry.count is None else numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def raw(self) -> bytes:
        """The file from its beginning to where the metadata ends."""
        return self._data

    def integer(self, key: str, default: int | None = None) -> int:
        """A missing key gives the default, or an error when there is none; so do the getters below."""
        if default is not None and key not in self._entries:
            return default
        return int(self._numbers(key, self._scalar(key, INTEGERS, "an integer")).item())

    def real(self, key: str, default: float | None = None) -> float:
        if default is not None and key not in self._entries:
            return default
        return float(self._numbers(key, self._scalar(key, REALS | INTEGERS, "a number")).item())

    def flag(self, key: str, default: bool | None = None) -> bool:
        if default is not None and key not in self._entries:
            return default
        return bool(self._numbers(key, self._scalar(key, frozenset({BOOL}), "a bool")).item())

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self._entries:
            return default
        return self._strings(key, self._scalar(key, frozenset({STRING}), "a string"))[0]

    def strings(self, key: str) -> list[str]:
        return self._strings(key, self._array(key, frozenset({STRING}), "an array of strings"))

    def numbers(self, key: str) -> NDArray[Any]:
        """An array of the file's own dtype, read-only."""
        return self._numbers(key, self._array(key, frozenset(NUMERIC), "an array of numbers"))

    def length(self, key: str) -> int:
        """The number of elements of an array, without decoding them."""
        count = self._array(key, frozenset(NAMES), "an array").count
        assert count is not None
        return count

    def is_array(self, key: str) -> bool:
        return self._find(key).count is not None

    def _find(self, key: str) -> Entry:
        if key not in self._entries:
            raise ModelFormatError(self.path, f"metadata {key!r} is missing")
        return self._entries[key]

    def _scalar(self, key: str, kinds: frozenset[int], wanted: str) -> Entry:
        entry = self._find(key)
        if entry.count is not None or entry.kind not in kinds:
            raise ModelFormatError(self.path, f"metadata {key!r} is {entry.described}, not {wanted}")
        return entry

    def _array(self, key: str, kinds: frozenset[int], wanted: str) -> Entry:
        entry = self._find(key)
        if entry.count is None or entry.kind not in kinds:
            raise ModelFormatError(self.path, f"metadata {key!r} is {entry.described}, not {wanted}")
        return entry

    def _numbers(self, key: str, entry: Entry) -> NDArray[Any]:
        """All the numbers of an entry; one for a scalar."""
        count = 1 if entry.count is None else entry.count
        numbers: NDArray[Any] = np.frombuffer(self._data, NUMERIC[entry.kind], count, entry.start)
        if entry.kind != BOOL:
            return numbers
        if numbers.max(initial=0) > 1:
            raise ModelFormatError(self.path, f"metadata {key!r} is a bool that is neither 0 nor 1")
        return numbers.view(np.bool_)

    def _strings(self, key: str, entry: Entry) -> list[str]:
        data, at, length_at = self._data, entry.start, _LENGTH.unpack_from
        strings = []
        try:
            for _ in range(1 if entry.count is None else entry.count):
                start = at + 8
                at = start + length_at(data, at)[0]
                strings.append(data[start:at].decode())
        except UnicodeDecodeError as fault:
            raise ModelFormatError(self.path, f"metadata {key!r} holds a string that is not UTF-8") from fault
        return strings
