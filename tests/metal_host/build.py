"""A Metal kernel as a shared object of this machine: its source for C++, compiled once and kept by hash."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine.metal.kernel import Kernel, Template

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
        contract = "-ffp-contract=fast" if self.contract else "-ffp-contract=off"
        return [*LANGUAGE, *METAL, *FUSED, contract, *(CHECKED if self.checked else [])]


# How the entry calls the kernel: the value of each attribute, of the type that the signature gives it.
PLACES = {
    "dispatch_quadgroups_per_threadgroup": "(launch->group.x * launch->group.y * launch->group.z + 3) / 4",
    "dispatch_simdgroups_per_threadgroup": "(launch->group.x * launch->group.y * launch->group.z + 31) / 32",
    "dispatch_threads_per_threadgroup": "as_uint3(launch->group)",
    "grid_origin": "uint3(0)",
    "grid_size": "as_uint3(launch->grid)",
    "quadgroup_index_in_threadgroup": "self->index / 4",
    "quadgroups_per_threadgroup": "(group->count + 3) / 4",
    "simdgroup_index_in_threadgroup": "self->index / 32",
    "simdgroups_per_threadgroup": "(group->count + 31) / 32",
    "thread_execution_width": "32",
    "thread_index_in_quadgroup": "self->index % 4",
    "thread_index_in_simdgroup": "self->index % 32",
    "thread_index_in_threadgroup": "self->index",
    "thread_position_in_grid": "as_uint3(self->in_grid)",
    "thread_position_in_threadgroup": "as_uint3(self->in_group)",
    "threadgroup_position_in_grid": "as_uint3(group->position)",
    "threadgroups_per_grid": "as_uint3(launch->groups)",
    "threads_per_grid": "as_uint3(launch->grid)",
    "threads_per_simdgroup": "32",
    "threads_per_threadgroup": "as_uint3(group->threads)",
}

COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
ARRAY = re.compile(
    r"(?<![\w(,<])(?P<before>(?:alignas\([^()]*\)\s*)?)threadgroup\s+"
    r"(?P<align>(?:alignas\([^()]*\)\s*)?)"
    r"(?P<type>(?:const\s+)?[A-Za-z_][\w:]*(?:\s*<[^;{}]*?>)?(?:\s+(?:int|char|short|long))?)\s+"
    r"(?P<names>[A-Za-z_]\w*\s*(?:\[[^;{}=]*\])?(?:\s*,\s*[A-Za-z_]\w*\s*(?:\[[^;{}=]*\])?)*)\s*;"
)


def without_comments(source: str) -> str:
    """The source with its comments blank, every line where it was."""

    def blank(found: re.Match[str]) -> str:
        text = found[0]
        return text if text[0] == '"' else re.sub(r"[^\n]", " ", text)

    return COMMENT_OR_STRING.sub(blank, source)


def declarators(names: str) -> Iterator[tuple[str, str]]:
    """`a[2], b` as names and extents, a comma within brackets left alone."""
    for one in re.split(r",(?![^\[]*\])", names):
        name, extents = re.fullmatch(r"\s*(\w+)\s*(.*?)\s*", one, re.DOTALL).groups()  # type: ignore[union-attr]
        yield name, extents


def shared_arrays(source: str) -> str:
    """Declarations in threadgroup memory as references to one array for all threads of the threadgroup."""
    count = 0

    def rewritten(found: re.Match[str]) -> str:
        nonlocal count
        parts = []
        for name, extents in declarators(found["names"]):
            align = found["before"] or found["align"]
            parts.append(
                f"typedef {found['type']} metal_host_{name} {extents}; "
                f"auto &{name} = METAL_HOST_SHARED({count}, {name});{'/* ' + align + '*/' if align else ''}"
            )
            count += 1
        return " ".join(parts) + "\n" * found[0].count("\n")

    return ARRAY.sub(rewritten, source)


def located(kernel: Kernel, source: str) -> str:
    """The source with the lines of header and body counted as in their own files."""
    assert source.startswith(kernel.header)
    start = source.index(kernel.body, len(kernel.header))
    end = start + len(kernel.body)
    return (
        f'#line 1 "{kernel.name} header"\n{source[: len(kernel.header)]}\n#line 1 "{kernel.name} signature"\n'
        f'{source[len(kernel.header) : start]}\n#line 1 "{kernel.name} body"\n{source[start:end]}'
        f'\n#line 1 "{kernel.name} end"\n{source[end:]}'
    )


def entry(source: str) -> str:
    """A function that calls the kernel for one thread, with what its signature asks for."""
    name, parameters = re.search(r"\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{\n", source, re.DOTALL).groups()  # type: ignore[union-attr]
    arguments = []
    for parameter in parameters.split(",\n"):
        kind, attribute = re.fullmatch(r"\s*(.*?[*&]?) \w+ \[\[(.*)\]\]", parameter).groups()  # type: ignore[union-attr]
        if attribute in PLACES:
            arguments.append(PLACES[attribute])
            continue
        index = int(attribute.removeprefix("buffer(").removesuffix(")"))
        pointer = f"static_cast<{kind.replace('&', '*')}>(buffers[{index}])"
        arguments.append(f"*{pointer}" if kind.endswith("&") else pointer)
    instance = re.search(rf"decltype\(({name}<[^<>]*>)\)", source)
    call = f"    ::{instance[1] if instance else name}({', '.join(arguments)});"
    return (
        f"namespace metal_host {{\nvoid thread_main(void *const *buffers) {{\n{call}\n}}\n}} // namespace metal_host\n"
    )


def translated(kernel: Kernel, template: Template) -> str:
    source = without_comments(located(kernel, kernel.source(template)))
    return shared_arrays(source) + "\n" + entry(kernel.source(template))


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
    texts = [path.name.encode() + path.read_bytes() for path in sorted(SHIM.iterdir())]
    return hashlib.sha256(b"\0".join([*texts, compiler_version().encode()])).hexdigest()


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
    source = translated(kernel, template)
    key = hashlib.sha256("\0".join([shim_hash(), *options.flags(), source]).encode()).hexdigest()[:24]
    target = CACHE / f"{kernel.name}_{key}.so"
    if target.exists():
        return target
    include = ["-I", str(precompiled(options)), "-I", str(SHIM), "-include", "metal_host.h"]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        text, part = Path(folder) / f"{kernel.name}.cpp", Path(folder) / "kernel.o"
        text.write_text(source)
        run_compiler(*options.flags(), *QUIET, *include, "-c", text, "-o", part)
        run_compiler("-shared", part, runtime(), "-o", Path(folder) / "kernel.so")
        (Path(folder) / "kernel.so").rename(target)
    return target
