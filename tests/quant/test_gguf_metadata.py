"""Typed getters: the stated type, or an error that names the file, the key and what was found."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from quant.errors import ModelFormatError
from quant.gguf_file import GGUFFile
from quant.gguf_metadata import Metadata
from tests.quant.files import ARRAYS, SCALARS, finish, write_gguf

INTEGERS = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metadata]:
    path = tmp_path_factory.mktemp("metadata") / "all.gguf"
    write_gguf(path)
    with GGUFFile(path) as model:
        yield model.metadata


@pytest.mark.parametrize("key", INTEGERS)
def test_every_integer_type_is_an_integer(metadata: Metadata, key: str) -> None:
    assert metadata.integer(key) == SCALARS[key][0]
    assert metadata.real(key) == float(SCALARS[key][0])


def test_each_getter_gives_its_type(metadata: Metadata) -> None:
    assert metadata.real("f32") == 0.5
    assert metadata.real("f64") == 1e-300
    assert metadata.flag("yes") is True
    assert metadata.flag("no") is False
    assert metadata.text("text") == SCALARS["text"][0]
    assert metadata.strings("words") == ARRAYS["words"]
    np.testing.assert_array_equal(metadata.numbers("ints"), ARRAYS["ints"])
    np.testing.assert_array_equal(metadata.numbers("floats"), ARRAYS["floats"])
    assert metadata.numbers("flags").dtype == np.bool_


def test_a_length_is_known_without_decoding(metadata: Metadata) -> None:
    assert {key: metadata.length(key) for key in ARRAYS} == {key: len(values) for key, values in ARRAYS.items()}


def test_a_number_of_the_file_cannot_be_written_over(metadata: Metadata) -> None:
    with pytest.raises(ValueError, match="read-only"):
        metadata.numbers("ints")[0] = 1


def test_a_default_stands_in_for_a_missing_key_alone(metadata: Metadata) -> None:
    assert metadata.integer("absent", 7) == 7
    assert metadata.integer("absent", 0) == 0
    assert metadata.real("absent", 0.0) == 0.0
    assert metadata.flag("absent", False) is False
    assert metadata.text("absent", "") == ""
    with pytest.raises(ModelFormatError, match="metadata 'text' is string, not an integer"):
        metadata.integer("text", 7)


def test_a_missing_key_is_named(metadata: Metadata) -> None:
    getters: list[Callable[[str], object]] = [
        metadata.integer,
        metadata.real,
        metadata.flag,
        metadata.text,
        metadata.strings,
        metadata.numbers,
        metadata.length,
        metadata.is_array,
    ]
    for getter in getters:
        with pytest.raises(ModelFormatError, match=r"all\.gguf: metadata 'absent' is missing"):
            getter("absent")


def test_a_wrong_type_is_named(metadata: Metadata) -> None:
    with pytest.raises(ModelFormatError, match="metadata 'f32' is f32, not an integer"):
        metadata.integer("f32")
    with pytest.raises(ModelFormatError, match="metadata 'yes' is bool, not an integer"):
        metadata.integer("yes")
    with pytest.raises(ModelFormatError, match="metadata 'u8' is u8, not a bool"):
        metadata.flag("u8")
    with pytest.raises(ModelFormatError, match="metadata 'ints' is array of i32, not an integer"):
        metadata.integer("ints")
    with pytest.raises(ModelFormatError, match="metadata 'words' is array of string, not an array of numbers"):
        metadata.numbers("words")
    with pytest.raises(ModelFormatError, match="metadata 'text' is string, not an array of strings"):
        metadata.strings("text")
    with pytest.raises(ModelFormatError, match="metadata 'text' is string, not an array"):
        metadata.length("text")


def rewritten(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """A file of one string and one bool in which some bytes are replaced."""
    path = tmp_path / "patched.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("key", "valu")
    writer.add_array("list", ["valu"])
    writer.add_bool("flag", True)
    finish(writer)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_a_string_that_is_not_utf_8_is_refused_when_asked_for(tmp_path: Path) -> None:
    with GGUFFile(rewritten(tmp_path, b"valu", b"\xff\xfe\xfd\xfc")) as model:
        for get in (model.metadata.text, model.metadata.__getitem__):
            with pytest.raises(ModelFormatError, match="metadata 'key' holds a string that is not UTF-8"):
                get("key")
        with pytest.raises(ModelFormatError, match="metadata 'list' holds a string that is not UTF-8"):
            model.metadata.strings("list")


def test_a_key_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"metadata key at byte \d+ is not UTF-8"):
        GGUFFile(rewritten(tmp_path, b"key", b"k\xffy"))


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="metadata 'list' occurs twice"):
        GGUFFile(rewritten(tmp_path, b"flag", b"list"))


def test_a_bool_is_0_or_1(tmp_path: Path) -> None:
    flag = b"flag" + (7).to_bytes(4, "little")
    with (
        GGUFFile(rewritten(tmp_path, flag + b"\1", flag + b"\2")) as model,
        pytest.raises(ModelFormatError, match="metadata 'flag' is a bool that is neither 0 nor 1"),
    ):
        model.metadata.flag("flag")
