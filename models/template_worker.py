"""The process that renders chat templates: jinja2 in a sandbox, in a process that may be killed at any moment.

It is started as a script and imports nothing of ours. Frames on stdin and stdout are a 4-byte little-endian length and
that many bytes of JSON: first the templates by name, which is answered when the process is ready, then for each render
the name and the context, which is answered by {"text": ...} or {"fault": ...}. It leaves when stdin closes.
"""

import encodings.unicode_escape  # noqa: F401
import html  # noqa: F401
import json
import os
import pprint  # noqa: F401
import resource
import signal
import struct
import sys
import textwrap  # noqa: F401
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, NoReturn

import jinja2.constants
import jinja2.debug  # noqa: F401
from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The modules above that nothing here names are imported by jinja2 when it first needs them, and by then no file can be
# opened any more.
ABANDONED = 10.0  # seconds after which a render that nobody ended ends itself


class Refusal(Exception):
    """What a template says through raise_exception: words for the user."""


class Generation(Extension):
    """{% generation %} marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def main() -> None:
    sources = json.loads(_read(sys.stdin.buffer))
    _confine(int(sys.argv[1]))
    _write(sys.stdout.buffer, b"ready")
    compiled: dict[str, Template] = {}
    while True:
        asked = json.loads(_read(sys.stdin.buffer))
        signal.setitimer(signal.ITIMER_REAL, ABANDONED)  # its default action ends the process, whatever runs
        answer = _attempt(partial(_render, compiled, sources, asked["name"], asked["context"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(sys.stdout.buffer, json.dumps(answer).encode())


def _render(compiled: dict[str, Template], sources: dict[str, str], name: str, context: dict[str, Any]) -> str:
    if name not in compiled:
        compiled[name] = _environment().from_string(sources[name])
    return compiled[name].render(context)


def _attempt(render: Callable[[], str]) -> dict[str, str]:
    try:
        return {"text": render()}
    except Refusal as refusal:
        return {"fault": str(refusal) or "the chat template refuses these messages"}
    except TemplateSyntaxError as fault:
        return {"fault": f"the chat template is not valid: line {fault.lineno}: {fault.message}"}
    except MemoryError:
        return {"fault": "the chat template asked for more memory than it may have"}
    except RecursionError:
        return {"fault": "the chat template calls itself too deeply"}
    except Exception as fault:
        return {"fault": f"the chat template failed: {type(fault).__name__}: {fault}"}


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as the authors of chat templates know it, which is how transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja2's escapes for HTML, which a model would have to read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _confine(memory: int) -> None:
    """From here on no file or socket can be opened, no process started, and memory is bounded where the system can."""
    time.tzset()  # reads the time zone's file while files can be read
    limits = {resource.RLIMIT_NOFILE: 3, resource.RLIMIT_NPROC: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # macOS has the limit and does not enforce it; there the parent watches
        with open("/proc/self/statm") as statm:
            limits[resource.RLIMIT_AS] = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE") + memory
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _read(stream: BinaryIO) -> bytes:
    head = stream.read(4)
    if len(head) < 4:
        sys.exit(0)
    return stream.read(struct.unpack("<I", head)[0])


def _write(stream: BinaryIO, frame: bytes) -> None:
    stream.write(struct.pack("<I", len(frame)) + frame)
    stream.flush()


if __name__ == "__main__":
    main()
