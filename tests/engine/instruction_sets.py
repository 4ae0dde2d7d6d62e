"""The same test program run once for each instruction set that this machine has."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KNOWN = ("portable", "neon_dotprod", "neon_i8mm", "sme", "avx2", "avx_vnni", "avx512")


def here() -> list[str]:
    """The kernels that run on this machine; portable is first, and there is at least that."""
    names = [name for name in KNOWN if _run(name, "from engine import _native; _native.kernels()").returncode == 0]
    assert names[0] == "portable"
    return names


def printed_by_each(module: str) -> list[str]:
    """What `module` prints as a program under each instruction set."""
    runs = [_run(name, f"import runpy; runpy.run_module({module!r}, run_name='__main__')") for name in here()]
    for run in runs:
        assert run.returncode == 0, run.stderr
    return [run.stdout for run in runs]


def _run(name: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PUNA_CPU": name, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
