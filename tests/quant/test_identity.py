"""A model's identity: alike for the same weights wherever they lie, and another for any others."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from quant.checkpoint import Bytes, OpenFile
from quant.identity import DIGEST, SAMPLE, identity_of
from quant.open import open_checkpoint
from tests.quant.files import finish, quantised, write_config, write_gguf

VALUES = 16 * SAMPLE  # of a tensor with room between the samples


def write_file(place: Path, note: str = "", name: str = "matrix", rows: int = 1) -> Path:
    path = place / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("note", note)
    values = np.random.default_rng(5).normal(size=VALUES).astype(np.float32)
    writer.add_tensor(name, values.reshape(rows, -1))
    writer.add_tensor("small", np.arange(8, dtype=np.float32))
    finish(writer)
    return old(path)


def write_folder(place: Path, theta: float = 1e4) -> Path:
    write_config(place, rope_theta=theta, quantization={"bits": 4, "group_size": 64})
    weight = mx.random.normal((64, 2048), key=mx.random.key(3))
    mx.save_safetensors(str(place / "model.safetensors"), quantised("matrix", weight, 64, 4))
    return old(place)


def old(path: Path) -> Path:
    """All times set to one."""
    for file in [path, *path.glob("*")]:
        os.utime(file, (1000, 1000))
    return path


def identity(path: Path) -> bytes:
    with open_checkpoint(path) as checkpoint:
        return identity_of(checkpoint)


every_kind = pytest.mark.parametrize("write", [write_file, write_folder], ids=["gguf", "mlx"])


@every_kind
def test_a_model_keeps_its_identity(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    assert identity(path) == identity(path)
    assert len(identity(path)) == DIGEST


@every_kind
def test_a_copy_with_its_times_is_the_same_model(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (tmp_path / "here").mkdir()
    path = write(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert identity(tmp_path / "there") == identity(path)


@every_kind
def test_every_plane_counts_at_both_ends_and_in_the_middle(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    with open_checkpoint(path) as checkpoint:
        planes = [plane for tensor in checkpoint.tensors.values() for plane in tensor.planes]
    places = {plane.offset + at for plane in planes for at in (0, plane.nbytes // 2, plane.nbytes - 1)}
    seen = {identity(path)}
    for place in places:
        flip(planes[0].file.path, place)
        seen.add(identity(path))
        flip(planes[0].file.path, place)
    assert len(seen) == 1 + len(places)


def flip(file: Path, place: int) -> None:
    """Another byte there, and the same time; twice is nothing."""
    with open(file, "r+b") as data:
        data.seek(place)
        byte = data.read(1)[0]
        data.seek(place)
        data.write(bytes([byte ^ 0xFF]))
    old(file)


@every_kind
def test_an_edit_between_the_samples_counts_by_its_time(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    (file,) = [file for file in tmp_path.iterdir() if file.name != "config.json"]
    before = identity(path)
    os.utime(file, ns=(0, 1000 * 10**9 + 1))
    assert identity(path) != before


def test_what_a_gguf_file_says_counts(tmp_path: Path) -> None:
    seen = {
        identity(write_file(tmp_path)),
        identity(write_file(tmp_path, note="a")),
        identity(write_file(tmp_path, note="b")),
        identity(write_file(tmp_path, name="matriy")),
        identity(write_file(tmp_path, rows=2)),
    }
    assert len(seen) == 5


def test_what_a_folder_says_counts(tmp_path: Path) -> None:
    assert identity(write_folder(tmp_path)) != identity(write_folder(tmp_path, theta=5e5))


def test_each_part_of_a_split_model_counts(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", split_max_tensors=6)
    old(tmp_path)
    seen = {identity(tmp_path)}
    parts = sorted(tmp_path.iterdir())
    for part in parts:
        os.utime(part, (2000, 2000))
        seen.add(identity(tmp_path))
    assert len(seen) == 1 + len(parts) > 2


@every_kind
def test_little_of_a_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    whole, read = OpenFile.read, []

    def counted(file: OpenFile, offset: int, nbytes: int) -> Bytes:
        read.append(nbytes)
        return whole(file, offset, nbytes)

    with open_checkpoint(write(tmp_path)) as checkpoint:
        planes = sum(len(tensor.planes) for tensor in checkpoint.tensors.values())
        monkeypatch.setattr(OpenFile, "read", counted)
        identity_of(checkpoint)
    assert max(read) <= 4096
    assert len(read) <= 3 * planes
