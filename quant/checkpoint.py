"""What a model file offers, whatever its kind: named tensors whose bytes lie in files that were opened once."""

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quant.decode import dequantise, dequantise_affine, floats
from quant.errors import ModelFileError, ModelFormatError
from quant.formats import Affine, Format

Bytes = NDArray[np.uint8]


class OpenFile:
    """A regular file opened once: every check and every later read sees the same file, or an error says it changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK the opening of a named pipe would wait for its writer.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
            raise ModelFileError(path, f"cannot be opened: {_reason(fault)}") from fault
        status = os.fstat(self.fd)
        self.size = status.st_size
        self._written = status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ModelFileError(path, "not a regular file")

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Exactly these bytes."""
        assert self.fd >= 0, "read after close"
        data = np.empty(nbytes, np.uint8)
        try:
            done = self._fill(data.data, offset)
        except OSError as fault:
            raise ModelFileError(self.path, f"cannot be read: {_reason(fault)}") from fault
        status = os.fstat(self.fd)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._written):
            raise ModelFormatError(self.path, "changed while it was open")
        if done < nbytes:
            raise ModelFormatError(self.path, f"ends at byte {offset + done}; {nbytes} bytes from {offset} were due")
        return data

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _fill(self, view: memoryview, offset: int) -> int:
        done = 0  # one call reads at most 2 GiB on Linux
        while done < len(view):
            got = os.preadv(self.fd, [view[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done


def _reason(fault: OSError | ValueError) -> str:
    return (fault.strerror if isinstance(fault, OSError) else None) or str(fault)


@dataclass(frozen=True)
class Plane:
    """A span of an open file that holds one kind of number."""

    file: OpenFile
    offset: int
    nbytes: int
    dtype: str  # u8 for blocks, else as in quant.formats.NUMPY

    def read(self) -> Bytes:
        return self.file.read(self.offset, self.nbytes)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model: its logical shape, outermost first, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    format: Format | Affine
    planes: tuple[Plane, ...]  # blocks: one; affine: words, scales, biases

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def values(self) -> NDArray[np.float32]:
        """The weights by the reference decoders."""
        if isinstance(self.format, Affine):
            words, scales, biases = self.planes
            rows = self.size // self.shape[-1]
            decoded = dequantise_affine(
                words.read().view("<u4").reshape(rows, -1),
                floats(scales.read(), scales.dtype).reshape(rows, -1),
                floats(biases.read(), biases.dtype).reshape(rows, -1),
                self.format,
            )
            return decoded.reshape(self.shape)
        return dequantise(self.planes[0].read(), self.format.name).reshape(self.shape)


class Checkpoint(Protocol):
    """An open model file or folder."""

    @property
    def path(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def statement(self) -> bytes:
        """All that it says of the model beside its tensors."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None
    ) -> None: ...
