"""Laws of the thread pool: a round is each of its units once, and threads that the system refuses are an error."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CPU = Path(__file__).parents[2] / "engine" / "cpu"
ROUNDS = Path(__file__).with_name("pool_rounds.cpp")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_round_runs_each_unit_once_and_then_ends(tmp_path: Path) -> None:
    program = tmp_path / "rounds"
    sources = [str(ROUNDS), str(CPU / "pool.cpp")]
    subprocess.run(["c++", "-std=c++20", "-O2", "-pthread", f"-I{CPU}", *sources, "-o", str(program)], check=True)
    assert subprocess.run([program], check=True, capture_output=True, text=True, timeout=120).stdout == "0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not bound the address space, where stacks lie")
def test_threads_that_the_system_refuses_are_an_error_and_the_pool_goes_on() -> None:
    program = f"""
import resource
from engine import _native
_native.set_threads(2)
resource.setrlimit(resource.RLIMIT_AS, ({2**33}, {2**33}))
try:
    _native.set_threads(100_000)
except RuntimeError:
    print(_native.threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")
