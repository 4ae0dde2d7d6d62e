"""The engine's C++ as the cross compiler takes it: which files AArch64 has, with which features and headers."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cross.tools import CPU, ROOT, object_of

# As CMakeLists.txt has them, in the compiler's own words. Whatever is not named here runs on every AArch64.
FEATURES = {
    "neon_attention.cpp": "-mcpu=generic+v8_2a+dotprod",
    "neon_dotprod.cpp": "-mcpu=generic+v8_2a+dotprod",
    "neon_i8mm.cpp": "-mcpu=generic+v8_2a+dotprod+i8mm",
    "neon_probe.cpp": "-mcpu=generic+v8_2a+dotprod",
    "neon_i8mm_probe.cpp": "-mcpu=generic+v8_2a+dotprod+i8mm",
}


def of_aarch64() -> list[Path]:
    """Every source that the extension has on AArch64, read from CMakeLists.txt: all but those of another CPU."""
    listed = re.findall(r"\$\{CPU\}/(\w+\.cpp)", (ROOT / "CMakeLists.txt").read_text())
    return [CPU / name for name in dict.fromkeys(listed) if not name.startswith("avx")]


def with_formats(folder: Path) -> str:
    """The option that finds formats.h, which this writes into `folder`."""
    command = [sys.executable, "-m", "quant.header"]
    (folder / "formats.h").write_bytes(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return f"-I{folder}"


def objects_of(sources: list[Path], target: str, options: list[str], folder: Path) -> list[Path]:
    """Their objects, two at a time; each file gets the features that are its own."""

    def one(source: Path) -> Path:
        features = [FEATURES[source.name]] if source.name in FEATURES else []
        return object_of(source, target, [*options, *features], folder)

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(one, sources))
