"""Runs a Metal kernel on the host: every thread, in lock step, every access checked."""

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.metal.kernel import Input, Kernel, Size, Template
from tests.metal_host.build import Options, built, supported

Array = npt.NDArray[Any]

# numpy has no bfloat16: its bits travel as unsigned integers.
NUMPY = {"bool": "?", "bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "complex64": "<c8"}
NUMPY |= {f"{sign}int{n}": f"<{'u' if sign else 'i'}{n // 8}" for sign in ("u", "") for n in (8, 16, 32, 64)}


class KernelError(Exception):
    """What the host found wrong with a kernel while it ran, and where."""


@dataclass(frozen=True)
class Order:
    """What the language leaves open: the results of a good kernel do not hang on it, or stay within its bound.

    `sums` is the seed of an order of summation within a simdgroup (0: a butterfly), `reverse` runs threadgroups and
    lanes last first, `contract` fuses a * b + c, `flush` takes subnormal numbers for zero (but within
    matrix products of halves), `ulps` is how far exp, log, rsqrt and their like may be from the nearest float.
    """

    sums: int = 0
    reverse: bool = False
    contract: bool = False
    flush: bool = False
    ulps: int = 0


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("groups", ctypes.c_uint32 * 3),
        ("sums", ctypes.c_uint32),
        ("reverse", ctypes.c_uint32),
        ("flush", ctypes.c_uint32),
        ("ulps", ctypes.c_uint32),
    )


class _Given(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("granule", ctypes.c_uint64),
        ("unwritten", ctypes.c_void_p),
        ("writable", ctypes.c_int),
        ("initialised", ctypes.c_int),
    )


class _Result(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char_p), ("message_bytes", ctypes.c_uint64), ("fault", ctypes.c_uint64))


@dataclass
class Buffer:
    """An argument of the kernel: an input, what MLX passes behind it, or an output and which of it is written."""

    name: str
    data: Array
    writable: bool = False
    initialised: bool = True

    def __post_init__(self) -> None:
        self.granule = 1 if self.data.itemsize == 1 else 2
        self.unwritten = np.zeros(self.data.nbytes // self.granule if self.writable else 0, np.uint8)

    def given(self) -> _Given:
        return _Given(
            self.name.encode(),
            self.data.ctypes.data,
            self.data.nbytes,
            self.granule,
            self.unwritten.ctypes.data,
            self.writable,
            self.initialised,
        )

    def missing(self) -> Array:
        """The flat indices of the elements of which some byte was not written."""
        return np.flatnonzero(self.unwritten.reshape(self.data.size, -1).any(axis=1))


@cache
def loaded(path: Path) -> Any:
    # The interpreter's lock stays held: the host has one state for each kernel.
    return ctypes.PyDLL(str(path)).metal_host_launch


def inputs_of(kernel: Kernel, given: Sequence[Array] | Mapping[str, Array], template: Template) -> list[Buffer]:
    arrays = [given[i.name] for i in kernel.inputs] if isinstance(given, Mapping) else list(given)
    buffers: list[Buffer] = []
    for declared, array in zip(kernel.inputs, arrays, strict=True):
        what = f"{kernel.name}: {declared.name}"
        dtype = np.dtype(NUMPY[kernel.dtype(declared.dtype, template)])
        assert array.dtype == dtype, f"{what} is {dtype}, got {array.dtype}"
        assert declared.takes(array.shape), f"{what} lies in {declared.space} memory, got shape {array.shape}"
        buffers += [Buffer(declared.name, np.ascontiguousarray(array)), *extras(kernel, declared, array)]
    return buffers


def extras(kernel: Kernel, declared: Input, array: Array) -> list[Buffer]:
    """Shape, strides and number of dimensions, where the body names them."""
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    values = {"shape": (array.shape, "<i4"), "strides": (strides, "<i8"), "ndim": ([array.ndim], "<i4")}
    names = {f"{declared.name}_{end}": np.array(*value) for end, value in values.items() if array.ndim}
    return [Buffer(name, value) for name, value in names.items() if name in kernel.body]


def outputs_of(kernel: Kernel, shapes: Sequence[Sequence[int]], template: Template, init: float | None) -> list[Buffer]:
    buffers = []
    for declared, shape in zip(kernel.outputs, shapes, strict=True):
        dtype = kernel.dtype(declared.dtype, template)
        data = np.empty(tuple(shape), NUMPY[dtype])
        data.view(np.uint8 if data.ndim else data.dtype).fill(255)  # a NaN in every float format
        if init is not None:
            data.fill(np.float32(init).view(np.uint32) >> 16 if dtype == "bfloat16" else init)
        buffers.append(Buffer(declared.name, data, writable=True, initialised=init is not None))
    return buffers


def line_of(library: Path, offset: int) -> str:
    """The kernel's own line for an address in its shared object: the innermost that is not the shim's."""
    command = ["addr2line", "-i", "-e", str(library), hex(offset - 1)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return f"{library}+{offset:#x}"
    lines = [line.split(" (discriminator")[0].rsplit("/", 1)[-1] for line in said]
    return next((line for line in lines if " body:" in line or " header:" in line), " < ".join(lines))


def run(
    kernel: Kernel,
    inputs: Sequence[Array] | Mapping[str, Array],
    template: Template,
    grid: Size,
    threadgroup: Size,
    shapes: Sequence[Sequence[int]],
    *,
    init_value: float | None = None,
    order: Order = Order(),
    checked: bool = True,
    partial: bool = False,
) -> list[Array]:
    """The outputs of one dispatch of `grid` threads, as `Kernel.launch` returns them.

    Raises KernelError for an access out of bounds or misaligned, a race, a read of memory that nothing has written,
    threads apart at a barrier or simdgroup function, and, unless `partial`, an element of an output left unwritten.
    """
    if not supported():
        pytest.skip("the host for Metal kernels needs GNU C++ on Linux")
    buffers = [*inputs_of(kernel, inputs, template), *outputs_of(kernel, shapes, template, init_value)]
    library = built(kernel, template, Options(checked, order.contract))
    group = [min(t, g) for t, g in zip(threadgroup, grid, strict=True)]
    assert 0 < np.prod(group) <= 1024, f"{kernel.name}: {group} threads in a threadgroup"
    groups = [-(-g // t) for g, t in zip(grid, group, strict=True)]
    triple = ctypes.c_uint32 * 3
    launch = _Launch(triple(*grid), triple(*group), triple(*groups), order.sums, order.reverse, order.flush, order.ulps)
    message = ctypes.create_string_buffer(1024)
    result = _Result(ctypes.cast(message, ctypes.c_char_p), len(message), 0)
    given = (_Given * len(buffers))(*(buffer.given() for buffer in buffers))
    code = loaded(library)(ctypes.byref(launch), given, len(buffers), ctypes.byref(result))
    if code:
        where = f"{line_of(library, result.fault)}: " if result.fault else ""
        raise KernelError(f"{kernel.name}: {where}{message.value.decode() or 'the host has no memory for it'}")
    made = buffers[len(buffers) - len(kernel.outputs) :]
    if checked and not partial and init_value is None:
        require_written(kernel, made)
    return [buffer.data for buffer in made]


def require_written(kernel: Kernel, made: Sequence[Buffer]) -> None:
    for buffer in made:
        missing = buffer.missing()
        if len(missing):
            first = tuple(int(i) for i in np.unravel_index(missing[0], buffer.data.shape))
            count = f"{len(missing)} of {buffer.data.size} elements of {buffer.name}"
            raise KernelError(f"{kernel.name}: {count} unwritten, first {first}")
