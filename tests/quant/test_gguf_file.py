"""GGUF files: what the gguf package writes is read back, and nothing in a file is believed before it is checked."""

import os
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.decode import dequantise
from quant.errors import ModelFileError, ModelFormatError, UnsupportedModel
from quant.formats import FORMATS, UNDECODED, Format
from quant.gguf_file import GGUFFile
from tests.quant.files import ARRAYS, SCALARS, blocks, finish, write_gguf, write_small_gguf
from tests.quant.outside import names, outside

BLOCKS = [row for row in FORMATS.values() if not row.dense]

# What a count, length, offset, type or extent may be set to by someone who means harm.
EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_small_gguf(tmp_path / "small.gguf")
    return tmp_path / "small.gguf"


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """One path that mutated files are written to in turn."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "mutated.gguf"


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "all.gguf")
    with GGUFFile(tmp_path / "all.gguf") as model:
        assert model.metadata.text("general.architecture") == "llama"
        for key, (value, _) in SCALARS.items():
            assert model.metadata[key] == value
        for key, values in ARRAYS.items():
            assert list(model.metadata[key]) == values  # type: ignore[arg-type]
        assert [*model.tensors] == [*data]
        for name, raw in data.items():
            tensor = model.tensors[name]
            assert (tensor.name, tensor.shape, tensor.format) == (name, (3, 512), FORMATS[name])
            assert tensor.planes[0].read().tobytes() == raw.tobytes()
            np.testing.assert_array_equal(tensor.values(), dequantise(raw, name).reshape(3, 512))


@pytest.mark.parametrize("name", ["ggml-vocab-llama-spm.gguf", "ggml-vocab-gpt-2.gguf"])  # the oracle takes its time
def test_a_real_vocabulary_is_read_as_gguf_reads_it(name: str) -> None:
    path = outside("vocab") / name
    theirs = gguf.GGUFReader(path)
    with GGUFFile(path) as model:
        assert [*model.metadata] == [key for key in theirs.fields if not key.startswith("GGUF.")]
        for key, value in model.metadata.items():
            said = theirs.fields[key].contents()
            assert value.tolist() == said if isinstance(value, np.ndarray) else value == said
        assert not model.tensors


def test_version_2_is_laid_out_alike(small: Path) -> None:
    data = bytearray(small.read_bytes())
    data[4] = 2
    small.write_bytes(data)
    with GGUFFile(small) as model:
        assert [*model.tensors] == ["norm", "matrix"]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_a_file_may_choose_its_alignment(tmp_path: Path, alignment: int) -> None:
    write_small_gguf(tmp_path / "aligned.gguf", alignment)
    with GGUFFile(tmp_path / "aligned.gguf") as model:
        assert all(t.planes[0].offset % alignment == 0 for t in model.tensors.values())
        np.testing.assert_array_equal(model.tensors["norm"].values(), np.arange(8, dtype=np.float32))


def split(folder: Path) -> list[Path]:
    write_gguf(folder / "model.gguf", split_max_tensors=6)
    return sorted(folder.glob("model-*.gguf"))


def test_any_part_opens_all(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    whole = write_gguf(tmp_path / "one" / "model.gguf")
    parts = split(tmp_path)
    assert len(parts) == 3
    for part in parts:
        with GGUFFile(part) as model:
            assert model.metadata.text("text") == SCALARS["text"][0]
            assert {n: t.planes[0].read().tobytes() for n, t in model.tensors.items()} == {
                n: raw.tobytes() for n, raw in whole.items()
            }


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf: cannot be opened"):
        GGUFFile(parts[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFormatError, match="is part 1 of 3 and is not named"):
        GGUFFile(renamed)


def test_a_part_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelFormatError, match=r"00003-of-00003\.gguf: claims to be part 2 of 3"):
        GGUFFile(parts[0])


def patched_count(path: Path, key: str, value: int) -> None:
    """Overwrites a scalar of metadata in place."""
    field = gguf.GGUFReader(path).fields[key]
    data = bytearray(path.read_bytes())
    width = field.parts[-1].nbytes
    at = field.offset + sum(part.nbytes for part in field.parts[:-1])
    data[at : at + width] = value.to_bytes(width, "little")
    path.write_bytes(data)


def test_the_number_of_tensors_in_all_parts_is_checked(tmp_path: Path) -> None:
    parts = split(tmp_path)
    patched_count(parts[0], "split.tensors.count", 17)
    with pytest.raises(ModelFormatError, match="its parts hold 16 tensors; 17 are stated"):
        GGUFFile(parts[1])


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"twice-{i + 1:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        writer.add_tensor("t", np.zeros(8, np.float32))
        finish(writer)
    with pytest.raises(ModelFormatError, match=r"00002-of-00002\.gguf: tensor 't' occurs twice"):
        GGUFFile(tmp_path / "twice-00001-of-00002.gguf")


@pytest.mark.parametrize("name", names("hostile-gguf", "*.gguf"))
def test_a_hostile_file_is_refused_at_once_and_cheaply(name: str) -> None:
    path = outside("hostile-gguf") / name
    tracemalloc.start()
    began = time.perf_counter()
    refusal = read_through(path)
    taken, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (refusal == "") == (name == "ok.gguf")
    assert taken < 0.1
    assert peak < 32 << 20


def test_the_sound_file_among_the_hostile_ones_is_read_right() -> None:
    path = outside("hostile-gguf") / "ok.gguf"
    with GGUFFile(path) as model:
        np.testing.assert_array_equal(model.tensors["t"].values(), gguf.GGUFReader(path).tensors[0].data)


def read_through(path: Path) -> str:
    """The one law of damaged files: a refusal in one line, or a model whose every claim the file bears out."""
    refusal = ""
    try:
        with GGUFFile(path) as model:
            size = path.stat().st_size
            for tensor in model.tensors.values():
                (plane,) = tensor.planes
                assert 0 < plane.nbytes <= size - plane.offset
                assert tensor.values().shape == tensor.shape
            for key in model.metadata:
                model.metadata[key]
    except ModelFileError as fault:
        refusal = str(fault)
        if not refusal.startswith(f"{path}: ") or not refusal.isprintable():
            raise AssertionError(f"no way to speak to a user: {refusal!r}") from fault
    return refusal


def header_bytes(path: Path) -> int:
    """Where the tensors' data begins."""
    with GGUFFile(path) as model:
        return min(t.planes[0].offset for t in model.tensors.values())


def test_every_truncation_is_refused(small: Path, scratch: Path) -> None:
    data = small.read_bytes()
    with GGUFFile(small) as model:
        needed = max(t.planes[0].offset + t.planes[0].nbytes for t in model.tensors.values())
    for length in range(needed):
        scratch.write_bytes(data[:length])
        with pytest.raises(ModelFormatError):
            GGUFFile(scratch)


def test_no_flipped_bit_escapes(small: Path, scratch: Path) -> None:
    data = bytearray(small.read_bytes())
    for bit in range(header_bytes(small) * 8):
        data[bit // 8] ^= 1 << bit % 8
        scratch.write_bytes(data)
        read_through(scratch)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("layout", ["<I", "<Q"])
def test_no_extreme_number_escapes(small: Path, scratch: Path, layout: str) -> None:
    data = small.read_bytes()
    width = struct.calcsize(layout)
    for value in sorted({extreme & (1 << width * 8) - 1 for extreme in EXTREMES}):
        packed = struct.pack(layout, value)
        for at in range(4, header_bytes(small) - width):
            scratch.write_bytes(data[:at] + packed + data[at + width :])
            read_through(scratch)


@given(cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 64), st.binary(max_size=64)), max_size=4))
def test_no_mutation_escapes(scratch: Path, cuts: list[tuple[int, int, bytes]]) -> None:
    write_small_gguf(scratch)
    data = scratch.read_bytes()
    for at, length, replacement in cuts:
        at %= len(data) + 1
        data = data[:at] + replacement + data[at + length :]
    scratch.write_bytes(data)
    read_through(scratch)


def test_no_truncation_of_a_real_vocabulary_escapes(scratch: Path) -> None:
    data = (outside("vocab") / "ggml-vocab-llama-spm.gguf").read_bytes()
    for length in range(0, len(data), 1 << 14):
        scratch.write_bytes(data[:length])
        with pytest.raises(ModelFormatError):
            GGUFFile(scratch)


def test_a_header_longer_than_the_first_window_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_gguf(tmp_path / "all.gguf")
    monkeypatch.setattr("quant.gguf_file.WINDOWS", (64, 256, 1 << 20))
    with GGUFFile(tmp_path / "all.gguf") as model:
        assert [*model.tensors] == [*data]
        assert model.metadata.strings("words") == ARRAYS["words"]


def test_a_header_longer_than_any_window_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.gguf_file.WINDOWS", (16, 64))
    with pytest.raises(ModelFormatError, match="a header of more than 64 bytes"):
        GGUFFile(small)


@pytest.mark.parametrize("kind", UNDECODED)
def test_a_type_that_is_not_decoded_is_named(tmp_path: Path, kind: int) -> None:
    theirs = gguf.GGMLQuantizationType(kind)
    _, size = gguf.GGML_QUANT_SIZES[theirs]
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("t", np.zeros((1, size), np.uint8), raw_dtype=theirs)
    finish(writer)
    with pytest.raises(UnsupportedModel, match=f"tensor 't' is {theirs.name.lower()}, which is not decoded"):
        GGUFFile(tmp_path / "odd.gguf")


@pytest.mark.parametrize("row", BLOCKS, ids=lambda row: row.name)
def test_a_row_that_is_no_whole_number_of_blocks_is_refused(row: Format, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "rows.gguf", "llama")
    writer.add_tensor("t", blocks(row, 2, row.values), raw_dtype=gguf.GGMLQuantizationType(row.gguf))
    finish(writer)
    data = (tmp_path / "rows.gguf").read_bytes()
    # The same number of weights, as rows of half a block.
    extents = struct.pack("<QQ", row.values, 2)
    assert data.count(extents) == 1
    (tmp_path / "rows.gguf").write_bytes(data.replace(extents, struct.pack("<QQ", row.values // 2, 4)))
    with pytest.raises(ModelFormatError, match=f"not whole {row.name} blocks"):
        GGUFFile(tmp_path / "rows.gguf")


def test_a_tensor_that_is_not_aligned_is_refused(small: Path) -> None:
    data = small.read_bytes()
    stated = struct.pack("<IQ", FORMATS["q8_0"].gguf, 32)  # the first tensor has 32 bytes
    assert data.count(stated) == 1
    small.write_bytes(data.replace(stated, struct.pack("<IQ", FORMATS["q8_0"].gguf, 36)) + bytes(4))
    with pytest.raises(ModelFormatError, match="'matrix' is not aligned to 32 bytes"):
        GGUFFile(small)


def test_overlapping_tensors_are_refused(small: Path) -> None:
    with GGUFFile(small) as model:
        start = model.tensors["norm"].planes[0].offset
        second = model.tensors["matrix"].planes[0].offset - start
    data = small.read_bytes()
    stated = struct.pack("<IQ", FORMATS["q8_0"].gguf, second)
    assert data.count(stated) == 1
    small.write_bytes(data.replace(stated, struct.pack("<IQ", FORMATS["q8_0"].gguf, 0)))
    with pytest.raises(ModelFormatError, match=r"tensors '(norm|matrix)' and '(norm|matrix)' overlap"):
        GGUFFile(small)


def test_an_error_speaks_in_one_line_whatever_the_file_calls_its_tensors(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "loud.gguf", "llama")
    writer.add_tensor("\x1b[2J\nall is well", np.zeros(4, np.int32))
    finish(writer)
    with pytest.raises(UnsupportedModel) as fault:
        GGUFFile(tmp_path / "loud.gguf")
    assert str(fault.value).isprintable()


def test_a_file_that_changes_while_open_is_refused(small: Path) -> None:
    with GGUFFile(small) as model:
        plane = model.tensors["matrix"].planes[0]
        os.truncate(small, plane.offset + 1)
        with pytest.raises(ModelFormatError, match="changed while it was open"):
            plane.read()


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_closed_or_refused_model_keeps_no_file_open(tmp_path: Path) -> None:
    parts = split(tmp_path)
    before = open_files()
    with GGUFFile(parts[0]):
        assert open_files() == before + 3
    assert open_files() == before
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelFormatError):
        GGUFFile(parts[0])
    assert open_files() == before


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")  # opened without care it would wait for a writer
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="cannot be opened: No such file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUFFile(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be opened"):
        GGUFFile(tmp_path / "nul\0.gguf")
