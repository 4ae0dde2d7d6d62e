"""Kernels of AArch64, emulated, against the portable twins on this machine: every bit."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cross.sources import objects_of, with_formats
from tests.cross.tools import APPLE_M4, CPU, LINUX, compiled, ran

DRIVER = Path(__file__).with_name("kernel_digests.cpp")
PORTABLE = [
    CPU / f"{name}.cpp" for name in ("portable_matmul", "portable_rows", "portable_attention", "panels", "kv_codes")
]
KERNELS = [CPU / f"{name}.cpp" for name in ("neon_dotprod", "neon_i8mm", "neon_rows", "neon_attention", "kv_codes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def portable(folder: Path) -> list[str]:
    """What the twins print."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    program, options = folder / "portable", ("-std=c++20", "-O2", "-ffp-contract=off", f"-I{CPU}", with_formats(folder))
    subprocess.run(["c++", *options, str(DRIVER), *map(str, PORTABLE), "-o", str(program)], check=True)
    done = subprocess.run([program, "portable"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    """The same for AArch64, with every row of kernels."""
    objects = objects_of([DRIVER, *KERNELS], LINUX, [with_formats(folder)], folder)
    return compiled(objects, LINUX, [], folder)


@pytest.mark.parametrize("row", ["neon_dotprod", "neon_i8mm"])
def test_a_row_of_kernels_gives_the_bits_of_the_portable_one(row: str, program: Path, portable: list[str]) -> None:
    assert ran(program, [row], cpu=APPLE_M4).splitlines() == portable
