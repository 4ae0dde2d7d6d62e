"""A Metal kernel as a shared object of this machine: its source for C++, compiled once and kept by hash."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from engine.metal.kernel import Kernel, Template
from tests.metal_host import spaces
from tests.metal_host.source import may_contract, translated

SHIM = Path(__file__).parent / "shim"
CACHE = Path(tempfile.gettempdir()) / f"puna_metal_host_{os.getuid()}"
COMPILER = shutil.which("g++") or "g++"

LANGUAGE = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
]
# Constants without a suffix are float in Metal; shifts and overflow are defined there.
METAL = ["-fsingle-precision-constant", "-fwrapv", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern"]
QUIET = ["-w", "-Werror=return-type", "-Werror=narrowing"]
CHECKED = [
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds-strict,alignment,integer-divide-by-zero",
]
FUSED = ["-mfma"] if platform.machine() == "x86_64" else []


@dataclass(frozen=True)
class Options:
    """How a kernel is compiled: with a check of every access, and with a * b + c fused where Metal may fuse it."""

    checked: bool = True
    contract: bool = False

    def flags(self) -> list[str]:
        contract = ["-ffp-contract=fast", "-fexpensive-optimizations"] if self.contract else ["-ffp-contract=off"]
        return [*LANGUAGE, *METAL, *FUSED, *contract, *(CHECKED if self.checked else [])]


def run_compiler(*arguments: str | Path) -> None:
    done = subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr)


class CompileError(Exception):
    """What the compiler says of a kernel."""


@cache
def compiler_version() -> str:
    return subprocess.run([COMPILER, "-v"], capture_output=True, text=True, check=True).stderr


@cache
def shim_hash() -> str:
    """Of all that decides whether and how a kernel compiles, save the kernel."""
    files = [*sorted(SHIM.iterdir()), spaces.HEADER, Path(spaces.__file__)]
    texts = [path.name.encode() + path.read_bytes() for path in files]
    said = f"{compiler_version()} {spaces.available()}"
    return hashlib.sha256(b"\0".join([*texts, said.encode()])).hexdigest()


def made(name: str, *compile_with: str | Path) -> Path:
    """The file of that name in the cache; compiled beside it and moved, so that a reader finds all or nothing."""
    target = CACHE / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / target.name
            run_compiler(*compile_with, "-o", part)
            part.rename(target)
    return target


@cache
def runtime() -> Path:
    return made(
        f"{shim_hash()[:16]}/runtime.o",
        "-std=c++17",
        "-O2",
        "-g1",
        "-fPIC",
        "-fvisibility=hidden",
        "-c",
        SHIM / "runtime.cpp",
    )


@cache
def precompiled(options: Options) -> Path:
    """A folder with the shim's header, read once for all kernels of the same options."""
    key = hashlib.sha256(" ".join([shim_hash(), *options.flags()]).encode()).hexdigest()[:16]
    return made(f"{key}/metal_host.h.gch", *options.flags(), *QUIET, "-x", "c++-header", SHIM / "metal_host.h").parent


def built(kernel: Kernel, template: Template, options: Options) -> Path:
    """The shared object of one instance of the kernel."""
    options = replace(options, contract=options.contract and may_contract(kernel))
    source = translated(kernel, template)
    key = hashlib.sha256("\0".join([shim_hash(), *options.flags(), source]).encode()).hexdigest()[:24]
    target = CACHE / f"{kernel.name}_{key}.so"
    if target.exists():
        return target
    hold_spaces(kernel, template)
    include = ["-I", str(precompiled(options)), "-I", str(SHIM), "-include", "metal_host.h"]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        text, part = Path(folder) / f"{kernel.name}.cpp", Path(folder) / "kernel.o"
        text.write_text(source)
        run_compiler(*options.flags(), *QUIET, *include, "-c", text, "-o", part)
        run_compiler("-shared", part, runtime(), "-o", Path(folder) / "kernel.so")
        (Path(folder) / "kernel.so").rename(target)
    return target


def hold_spaces(kernel: Kernel, template: Template) -> None:
    """Raises if the kernel mixes address spaces, where clang is at hand to see it."""
    if not spaces.available():
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        found = spaces.refusals(kernel, template, Path(folder))
    if found:
        raise CompileError("\n".join(found))
