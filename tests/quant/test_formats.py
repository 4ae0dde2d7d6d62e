"""The format table agrees with the gguf package and with the C++ header that is made of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from quant.formats import AFFINE, BY_GGUF, FORMATS, NUMBER, UNDECODED, Field, Format
from quant.header import header
from tests.quant.outside import ROOT

every_format = pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)


@every_format
def test_a_row_has_the_name_and_sizes_that_gguf_gives_its_id(row: Format) -> None:
    theirs = gguf.GGMLQuantizationType(row.gguf)
    assert row.name == theirs.name.lower()
    assert (row.values, row.bytes) == gguf.GGML_QUANT_SIZES[theirs]


@every_format
def test_the_record_is_packed(row: Format) -> None:
    assert row.record.itemsize == row.bytes
    assert row.dense == (row.values == 1)


def test_a_row_whose_fields_do_not_fill_its_block_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="do not fill"):
        Format("short", 99, 32, 18, (Field("d", "f16", 1), Field("qs", "u8", 15)))


def test_every_type_of_gguf_is_decoded_or_refused_by_name() -> None:
    theirs = {kind.value: kind.name.lower() for kind in gguf.GGMLQuantizationType}
    assert {i: row.name for i, row in BY_GGUF.items()} | UNDECODED == theirs
    assert not BY_GGUF.keys() & UNDECODED.keys()


def test_names_of_rows_are_distinct() -> None:
    assert len(NUMBER) == len(FORMATS) + len(AFFINE)
    assert [*NUMBER.values()] == list(range(len(NUMBER)))


def test_the_header_is_printed_by_a_bare_interpreter() -> None:
    """As CMake does it: a script, the source root on the path, nothing else of ours imported."""
    printed = subprocess.run(
        [sys.executable, "quant/header.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == header() + "\n"


@pytest.mark.parametrize("pick", ["g++", "clang++"])
def test_a_compiler_agrees_with_every_size_and_offset(pick: str, tmp_path: Path) -> None:
    compiler = shutil.which(pick)
    if compiler is None:
        pytest.skip(f"no {pick} here")
    (tmp_path / "formats.h").write_text(header())
    checks = [
        f"static_assert(block_rows[{i}].format == Format::{row.name} && static_cast<int>(Format::{row.name}) == {i} && "
        f"block_rows[{i}].bytes == sizeof(block_of<Format::{row.name}>::type) && "
        f"block_of<Format::{row.name}>::values == {row.values});"
        for i, row in enumerate(FORMATS.values())
    ]
    checks += [
        f"static_assert(affine_rows[{i}].format == Format::{row.name} && affine_rows[{i}].bits == {row.bits} && "
        f"affine_of<Format::{row.name}>::group == {row.group});"
        for i, row in enumerate(AFFINE.values())
    ]
    (tmp_path / "check.cpp").write_text('#include "formats.h"\nusing namespace puna;\n' + "\n".join(checks))
    subprocess.run(
        [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(tmp_path / "check.cpp")],
        check=True,
    )
