"""AVX-VNNI kernels, which few machines run: built apart, their two instructions emulated, and looked through."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.instruction_sets import ROOT, here

CPU = ROOT / "engine" / "cpu"
OPTIONS = ["-std=c++20", "-O3", "-DNDEBUG", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
KERNELS = ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="x86-64 Linux only"),
    pytest.mark.skipif(not all(map(shutil.which, ("c++", "nm", "objdump"))), reason="needs a compiler and binutils"),
]


def printed(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object file of the kernels, beside the header that they include."""
    folder = tmp_path_factory.mktemp("avx_vnni")
    (folder / "formats.h").write_text(printed(sys.executable, "-m", "quant.header"))
    made = folder / "avx_vnni_matmul.o"
    printed("c++", *OPTIONS, *KERNELS, f"-I{folder}", "-c", CPU / "avx_vnni_matmul.cpp", "-o", made)
    return made


@pytest.mark.skipif("avx2" not in here(), reason="this CPU has no AVX2")
def test_every_strip_equals_the_portable_one_in_every_bit(kernels: Path) -> None:
    program = kernels.with_name("avx_vnni")
    sources = [ROOT / "tests" / "engine" / "avx_vnni.cpp", CPU / "portable_matmul.cpp", CPU / "panels.cpp"]
    printed("c++", *OPTIONS, f"-I{CPU}", f"-I{kernels.parent}", *sources, kernels, "-o", program)
    assert printed(program).startswith("equal")


def test_no_instruction_is_of_avx_512(kernels: Path) -> None:
    lines = [line.split("\t") for line in printed("objdump", "-d", kernels).splitlines()]
    codes = [line[1] for line in lines if len(line) > 2]
    assert any(code.startswith("c4 e2") for code in codes)  # VEX with the map of vpdpbusd
    assert not any(code.startswith("62 ") for code in codes)  # EVEX


def test_no_function_is_left_to_the_linker_to_choose(kernels: Path) -> None:
    """The linker keeps one copy of a weak function; a CPU that lacks these instructions must not meet theirs."""
    assert [line for line in printed("nm", "-C", kernels).splitlines() if " W " in line] == []
