"""The address spaces of a kernel, held apart by clang: what Metal refuses and the host's C++ compiler cannot see."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from engine.metal.kernel import Kernel, Template
from tests.metal_host.source import ARRAY, declarators, located, without_comments

HEADER = Path(__file__).parent / "spaces" / "metal.h"
LANGUAGE = [
    "-x",
    "c++",
    "-std=c++17",
    "-nostdinc",
    "-target",
    "x86_64-linux-gnu",
    "-fsyntax-only",
    "-w",
    "-ferror-limit=0",
]
WORD = "(?:const|volatile|device|constant|threadgroup|thread)"
POINTER = rf"(?:{WORD}\s+)*[A-Za-z_][\w:]*(?:<[^<>()]*>)?(?:\s+{WORD})*\s*\*"
VECTOR = "(?:float|half|bfloat|u?(?:int|short|char|long)|bool)[234]"


def available() -> bool:
    return find_spec("ziglang") is not None


def own_arrays(source: str) -> str:
    """Arrays in threadgroup memory as references into it: the parser takes no declaration of one in a function."""

    def rewritten(found: re.Match[str]) -> str:
        parts = [
            f"typedef {found['type']} space_{name} {extents}; "
            f"threadgroup space_{name} &{name} = *(threadgroup space_{name} *)16;"
            for name, extents in declarators(found["names"])
        ]
        return " ".join(parts) + "\n" * found[0].count("\n")

    return ARRAY.sub(rewritten, source)


REWRITTEN = {
    r"(?<![\w.])(\d+(?:\.\d*)?(?:e[-+]?\d+)?)h\b": r"((half)\1)",  # 1.0h
    rf"\b({VECTOR}) (\w+)\((?=[^;{{}}]*\)\s*;)": r"\1 \2 = \1(",  # float2 r(1, 2);
    rf"\(\s*({POINTER})\s*\)(?=\s*[\w(&*])": r"space_cast<\1>() ->* ",  # (const device float*)x
    r"\[\[(?:kernel|host_name\([^()]*\)|buffer\(\d+\))\]\]": "",
    r"#\s*(?:pragma|include)[^\n]*": "",
}


def parsed(kernel: Kernel, template: Template) -> str:
    """The kernel in words that the parser takes, line for line."""
    source = without_comments(located(kernel, kernel.source(template)))
    for pattern, by in REWRITTEN.items():
        source = re.sub(pattern, by, source)
    return own_arrays(source)


def refusals(kernel: Kernel, template: Template, folder: Path) -> list[str]:
    """What clang has against the kernel, an error a line; none if its address spaces fit."""
    text = folder / f"{kernel.name}.cpp"
    text.write_text(f'#include "{HEADER}"\n{parsed(kernel, template)}')
    command = [sys.executable, "-m", "ziglang", "clang", *LANGUAGE, str(text)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = re.split(r"\n(?=[^\n]*: error: )", "\n" + said.stderr)[1:]
    return [error.splitlines()[0] for error in errors if not copies_a_struct(error)]


def copies_a_struct(error: str) -> bool:
    """Metal copies a struct from and to any space; the parser knows only copies within a thread's own memory."""
    return "(the implicit copy" in error and "address space" in error
