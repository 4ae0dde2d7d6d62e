"""Panels hold what the file holds: every row decodes to the reference's bits, and a bad span is refused."""

import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import _native
from tests.engine.weight_cases import KINDS, Kind, weights

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@every_kind
def test_every_row_decodes_to_the_references_bits(kind: Kind) -> None:
    w = weights(kind, 21, 896 if 896 % kind.group == 0 else 768)
    panels = w.pack()
    got = np.stack([np.array(_native.decode_row(panels, row)) for row in range(panels.rows)])
    np.testing.assert_array_equal(got.view(np.uint32), w.decoded.view(np.uint32))


@every_kind
def test_embedding_gives_the_rows_of_its_tokens(kind: Kind) -> None:
    w = weights(kind, 40, 256)
    tokens = [39, 0, 7, 7, 16]
    got = np.array(_native.embed(mx.array(tokens), w.pack()))
    np.testing.assert_array_equal(got, w.decoded[tokens])


def test_a_token_outside_the_table_gives_nans() -> None:
    got = np.array(_native.embed(mx.array([-1, 40, 3]), weights(Kind("q8_0"), 40, 256).pack()))
    np.testing.assert_array_equal(np.isnan(got).all(1), [True, True, False])


@pytest.mark.parametrize(
    ("name", "limit"),
    [("q4_k", 4.63), ("q5_k", 5.63), ("q6_k", 6.63), ("q8_0", 8.5), ("q4_0", 4.5), ("q2_k", 2.63), ("q3_k", 3.63)],
)
def test_panels_are_about_as_small_as_the_file(name: str, limit: float) -> None:
    panels = weights(Kind(name), 64, 512).pack()
    assert panels.nbytes * 8 / (panels.rows * panels.cols) <= limit


def test_threads_do_not_change_what_is_packed() -> None:
    w = weights(Kind("q4_k"), 1000, 2048)
    before = _native.threads()
    try:
        for threads in (1, 3):
            _native.set_threads(threads)
            got = np.array(_native.embed(mx.arange(1000), w.pack()))
            np.testing.assert_array_equal(got, w.decoded)
    finally:
        _native.set_threads(before)


def test_a_file_that_ends_inside_a_tensor_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100))
        file.flush()
        with pytest.raises(RuntimeError, match="ends inside a tensor, at byte 100"):
            _native.pack([(file.fileno(), 0, 32 * 34, "u8")], "q8_0", 32, 32)


@pytest.mark.parametrize(
    ("planes", "name", "cols"),
    [
        ([(0, 0, 33, "u8")], "q8_0", 32),  # one byte short
        ([(0, 0, 34, "u8")], "q8_0", 48),  # half a block
        ([(0, 0, 34, "u8")] * 2, "q8_0", 32),
        ([(0, 0, 34, "u8")], "q9_9", 32),
        ([(0, 0, 32, "u32"), (0, 0, 2, "f16"), (0, 0, 4, "f32")], "affine4_64", 64),
        ([(0, 0, 32, "u32"), (0, 0, 2, "u8"), (0, 0, 2, "u8")], "affine4_64", 64),
    ],
)
def test_spans_that_do_not_fit_the_shape_are_refused(
    planes: list[tuple[int, int, int, str]], name: str, cols: int
) -> None:
    with pytest.raises(RuntimeError):
        _native.pack(planes, name, 1, cols)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_memory_of_matrices_goes_with_them_and_no_sooner() -> None:
    w = weights(Kind("q8_0"), 1024, 2048)
    first, *others = [w.pack() for _ in range(80)]  # 178 MB, in three slabs that they share
    every = _resident()
    del others
    assert every - _resident() > 100e6
    np.testing.assert_array_equal(np.array(_native.decode_row(first, 7)), w.decoded[7])
    one = _resident()
    del first
    assert one - _resident() > 48e6


def _resident() -> int:
    """Bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])
