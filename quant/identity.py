"""Names the weights of a model by a digest that takes milliseconds: what is computed with them is kept under it."""

import hashlib
import os
from collections.abc import Iterator

from quant.checkpoint import Checkpoint, OpenFile, Plane

DIGEST = 32  # bytes

# Of each plane the first bytes, the last, and those in the middle. Weights that were trained further or quantised
# otherwise differ nearly everywhere.
SAMPLE = 4096


def identity_of(checkpoint: Checkpoint) -> bytes:
    """Of what the file says, of samples of each tensor, and of the sizes and times of its files.

    The times are there because a few bytes between the samples may change: an edit in place, a torn download that was
    mended. What was kept under the old weights must not be used then, and that is worth more than what was kept under a
    model that was copied without its time, as cp does without -p. Where all times are alike, as in some images of
    systems, the samples tell one model from another. The name and place of a file do not matter.
    """
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in _parts(checkpoint):
        digest.update(len(part).to_bytes(8, "little"))  # no two lists of parts run together to the same bytes
        digest.update(part)
    return digest.digest()


def _parts(checkpoint: Checkpoint) -> Iterator[bytes]:
    yield checkpoint.statement
    files: dict[int, OpenFile] = {}
    for name, tensor in sorted(checkpoint.tensors.items()):
        yield repr((name, tensor.shape, tensor.format.name)).encode()
        for plane in tensor.planes:
            files[plane.file.fd] = plane.file
            yield repr((plane.dtype, plane.offset, plane.nbytes)).encode()
            yield from _samples(plane)
    for file in files.values():
        yield repr((file.size, os.fstat(file.fd).st_mtime_ns)).encode()


def _samples(plane: Plane) -> Iterator[bytes]:
    last = max(0, plane.nbytes - SAMPLE)
    for start in sorted({0, last // 2, last}):
        yield plane.file.read(plane.offset + start, min(SAMPLE, plane.nbytes - start)).tobytes()
