"""What macOS on Apple's own CPUs builds is compiled here too, as far as a compiler alone can tell."""

import sysconfig
from pathlib import Path

import mlx.core
import pytest

from tests.cross.sources import objects_of, of_aarch64, with_formats
from tests.cross.tools import MACOS

MACH_O_64 = b"\xcf\xfa\xed\xfe"


def test_every_source_compiles_to_an_object_of_macos(tmp_path: Path) -> None:
    nanobind = pytest.importorskip("nanobind")  # is there wherever the extension was built
    mlx_headers = Path(mlx.core.__file__).parent / "include"
    headers = [f"-isystem{path}" for path in (mlx_headers, nanobind.include_dir(), sysconfig.get_path("include"))]
    # Unoptimised, as nothing of this runs; MLX and nanobind throw.
    options = ["-O0", "-fexceptions", with_formats(tmp_path), *headers]
    sources = of_aarch64()
    assert {"module.cpp", "kernels.cpp", "neon_i8mm.cpp"} <= {source.name for source in sources}
    for made in objects_of(sources, MACOS, options, tmp_path):
        assert made.read_bytes()[:4] == MACH_O_64, made.name
