"""The cross compiler and the emulator: programs for AArch64 made and run on whatever machine the tests run on."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = ROOT / "engine" / "cpu"
EMULATOR = ROOT / "build" / "cross" / "usr" / "bin" / "qemu-aarch64"

# To run, and to compile only: nothing here runs a program of macOS.
LINUX, MACOS = "aarch64-linux-musl", "aarch64-macos"
# What an Apple M4 looks like to a program: no SVE outside of streaming mode, streaming vectors of 512 bits.
APPLE_M4 = "max,sve=off,sme512=on"

STANDARD = (
    *("-std=c++20", "-O2", "-g0", "-Wall", "-Wextra", f"-I{CPU}"),
    *("-ffp-contract=off", "-fno-exceptions", "-fno-threadsafe-statics"),
)


def require_compiler() -> None:
    """Skips the test where the compiler is not installed; fails it where PUNA_CROSS=required."""
    if importlib.util.find_spec("ziglang") is None:
        _missing("no cross compiler: pip install ziglang")


def require_emulator() -> None:
    """Skips the test where the emulator is not installed; fails it where PUNA_CROSS=required."""
    if not EMULATOR.exists():
        _missing("no emulator: tests/cross/install.sh")


def compiled(sources: Sequence[Path], target: str, options: Sequence[str], folder: Path) -> Path:
    """The program made of `sources`, among which may be objects. They may use the C library and headers of C++, but not
    the run-time library of C++ (no std::vector, no exceptions): the compiler would build it first, for a minute or two.
    """
    objects = [s if s.suffix == ".o" else object_of(s, target, options, folder) for s in sources]
    program = folder / objects[0].stem
    _compiler("cc", "-target", target, "-static", *map(str, objects), "-o", str(program))
    return program


def object_of(source: Path, target: str, options: Sequence[str], folder: Path) -> Path:
    """The object of one source, in `folder` under the source's name.

    Features of the CPU are asked for as -mcpu=generic+dotprod+i8mm: this compiler takes -march for the name of a CPU.
    """
    out = folder / f"{source.stem}.o"
    language = "c++" if source.suffix == ".cpp" else "cc"
    standard = STANDARD if source.suffix == ".cpp" else ()
    _compiler(language, "-target", target, *standard, *options, "-c", str(source), "-o", str(out))
    return out


def _compiler(*arguments: str) -> None:
    require_compiler()
    done = subprocess.run([sys.executable, "-m", "ziglang", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def ran(program: Path, args: Sequence[str] = (), cpu: str = APPLE_M4) -> str:
    """What the program prints on the emulated CPU."""
    require_emulator()
    done = subprocess.run([EMULATOR, "-cpu", cpu, program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program.name} {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def traced(program: Path, args: Sequence[str], cpu: str, folder: Path) -> tuple[str, list[int]]:
    """What the program prints, and the address of every instruction that it executed."""
    require_emulator()
    log = folder / "trace"
    logging = ("-one-insn-per-tb", "-d", "exec,nochain", "-D", str(log))
    done = subprocess.run([EMULATOR, "-cpu", cpu, *logging, program, *args], capture_output=True, text=True, check=True)
    with log.open() as lines:
        addresses = [int(line.split("/", 2)[1], 16) for line in lines if line.startswith("Trace")]
    log.unlink()
    return done.stdout, addresses


def _missing(what: str) -> None:
    if os.environ.get("PUNA_CROSS") == "required":
        pytest.fail(what)
    pytest.skip(what)
