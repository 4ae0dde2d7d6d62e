"""Panels made of a GPU's matrices: the file's where the GPU has the file's bits, and no more than are asked for."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import _native
from engine.borrowed import borrowed, rows_of
from engine.builtin_weights import BuiltinLoader
from engine.metal.products import Held
from engine.metal.weights import MetalLoader
from engine.native_weights import NativeLoader, panels
from models.ops import Matrix
from quant.checkpoint import Tensor
from quant.open import open_checkpoint
from tests.engine.metal_world import Always, on_host
from tests.engine.weight_cases import KINDS, Kind, weights
from tests.tiny_models import write_gguf, write_mlx

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@every_kind
def test_panels_from_memory_are_those_from_the_file(kind: Kind) -> None:
    """With rows that fill no panel and columns that fill no superblock, where the format has such."""
    w = weights(kind, 37, 896 if 896 % kind.group == 0 else 768)
    rows, cols = w.decoded.shape
    assert _native.pack_arrays(w.arrays, kind.name, rows, cols).tobytes() == w.pack().tobytes()


def test_threads_do_not_change_what_is_packed() -> None:
    w = weights(Kind("q6_k"), 1000, 2048)
    before = _native.threads()
    try:
        for threads in (1, 3):
            _native.set_threads(threads)
            assert _native.pack_arrays(w.arrays, "q6_k", 1000, 2048).tobytes() == w.pack().tobytes()
    finally:
        _native.set_threads(before)


def test_a_room_has_as_many_pieces_as_were_in_use_at_once_and_gives_none_away_that_is() -> None:
    room = _native.Room()
    kinds = ("q4_k", "q6_k", "q8_0", "q5_k")
    made = [weights(Kind(name), 64, 512) for name in kinds]
    largest = 0
    for _ in range(3):
        for first, second in zip(made, made[1:] + made[:1], strict=True):
            both = [_native.pack_arrays(w.arrays, w.kind.name, 64, 512, room) for w in (first, second)]
            assert [p.tobytes() for p in both] == [w.pack().tobytes() for w in (first, second)]
            largest = max(largest, *(p.nbytes for p in both))
            del both
    assert room.nbytes <= 2 * largest
    kept = _native.pack_arrays(made[0].arrays, "q4_k", 64, 512, room)
    del room
    assert kept.tobytes() == made[0].pack().tobytes(), "panels outlive their room"


@pytest.mark.parametrize(
    ("planes", "name", "rows", "cols"),
    [
        ([mx.zeros((2, 34), mx.uint8)], "q8_0", 3, 32),
        ([mx.zeros((2, 34), mx.uint8)], "q8_0", 2, 48),  # half a block
        ([mx.zeros((2, 34), mx.uint8)] * 2, "q8_0", 2, 32),
        ([mx.zeros((2, 34), mx.uint8)], "q9_9", 2, 32),
        ([mx.zeros((2, 17), mx.float16)], "q8_0", 2, 32),
        ([mx.zeros((2, 32), mx.float16)], "bf16", 2, 32),
        ([mx.zeros((32, 2), mx.float32).T], "f32", 2, 32),  # rows do not lie one behind the other
        ([mx.zeros((2, 8), mx.uint32), mx.zeros((2, 1), mx.float16), mx.zeros((2, 1))], "affine4_64", 2, 64),
        ([mx.zeros((2, 8), mx.uint32), mx.zeros((2, 1)), mx.zeros((2, 2))], "affine4_64", 2, 64),
        ([mx.zeros((2, 32), mx.uint8), mx.zeros((2, 1)), mx.zeros((2, 1))], "affine4_64", 2, 64),
        ([], "q8_0", 2, 32),
    ],
)
def test_planes_that_do_not_fit_are_refused(planes: list[mx.array], name: str, rows: int, cols: int) -> None:
    mx.eval(planes)
    with pytest.raises(RuntimeError):
        _native.pack_arrays(planes, name, rows, cols)


def test_planes_that_are_not_there_yet_are_refused() -> None:
    with pytest.raises(RuntimeError, match="plainly"):
        _native.pack_arrays([mx.zeros((2, 32)) + 1], "f32", 2, 32)


def matrices(path: Path, kind: str) -> list[tuple[Tensor, Matrix]]:
    """The tensors of a file as a GPU has them: our kernels' way, or MLX's."""
    with open_checkpoint(path) as checkpoint:
        loader = MetalLoader(mx.float32, Always("blocks"), on_host) if kind == "blocks" else BuiltinLoader(mx.float32)
        return [(t, loader.matrix(t)) for t in checkpoint.tensors.values() if len(t.shape) == 2]


CASES = [("blocks", "q4_k"), ("blocks", "q6_k"), ("blocks", "iq4_nl"), ("mlx", "f32"), ("folder", "4bit")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def path_and_kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    kind, name = request.param
    if kind == "folder":
        return write_mlx(tmp_path, "qwen2", bits=4, layers=1), kind
    return write_gguf(tmp_path, "llama", kind=name, layers=1), kind


def test_what_a_gpu_holds_as_the_file_does_becomes_the_panels_of_the_file(path_and_kind: tuple[Path, str]) -> None:
    for tensor, matrix in matrices(*path_and_kind):
        with open_checkpoint(path_and_kind[0]) as checkpoint:
            want = panels(NativeLoader().matrix(checkpoint.tensors[tensor.name]))
        assert borrowed(matrix).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["q4_k", "q5_0", "q8_0", "q6_k"])
def test_what_was_repacked_for_mlx_has_the_same_values_as_panels(name: str, tmp_path: Path) -> None:
    """MLX has no kernel for some, so these lie there decoded."""
    path = write_gguf(tmp_path, "llama", kind=name, layers=1)
    for tensor, matrix in matrices(path, "mlx"):
        with open_checkpoint(path) as checkpoint:
            want = checkpoint.tensors[tensor.name].values()
        made = borrowed(matrix)
        got = np.stack([np.array(_native.decode_row(made, row)) for row in range(made.rows)])
        np.testing.assert_array_equal(got, want)


def test_rows_are_those_of_the_whole_matrix_in_the_order_asked(path_and_kind: tuple[Path, str]) -> None:
    _, table = max(matrices(*path_and_kind), key=lambda each: each[1].rows)
    tokens = [table.rows - 1, 0, 7, 7, 16, *range(20)]
    some = rows_of(table, mx.array(tokens), mx.default_stream(mx.Device(mx.cpu)))
    assert some.rows == len(tokens)
    got, want = _native.embed(mx.arange(len(tokens)), some), _native.embed(mx.array(tokens), borrowed(table))
    np.testing.assert_array_equal(np.array(got), np.array(want))


def test_blocks_are_borrowed_as_blocks(tmp_path: Path) -> None:
    """So that the laws above are about them."""
    for _, matrix in matrices(write_gguf(tmp_path, "llama", kind="q4_k", layers=1), "blocks"):
        assert isinstance(matrix, Held)
        assert (matrix.builtin, matrix.form) == (None, "q4_k")
