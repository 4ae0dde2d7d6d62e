"""ChatTemplate: messages to prompt text, rendered in a process of its own with bounded time and memory.

Templates come from strangers. jinja2's sandbox keeps them from Python, but neither from endless loops nor from strings
of a gigabyte; a process can be killed.
"""

import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Self

from models.footprint import footprint
from quant.errors import TemplateError

SECONDS = 2.0
MEMORY = 256 << 20  # bytes above what the process has when it begins
_START = 30.0  # the process imports jinja2, on a machine that may be busy
_WATCH = 0.05  # seconds between looks at the process's memory
_MAX_SOURCE = 1 << 20
_MAX_TEXT = 1 << 26
_WORKER = Path(__file__).with_name("template_worker.py")


class ChatTemplate:
    """A model's chat template. A render ends by text or by TemplateError, and leaves the next one a sound process."""

    def __init__(self, source: str, bos_text: str = "", eos_text: str = "", *, with_tools: str | None = None) -> None:
        """`with_tools` is the template for requests that bring tools, where a model has one of its own for them."""
        self._sources = {"default": source} if with_tools is None else {"default": source, "tools": with_tools}
        if max(map(len, self._sources.values())) > _MAX_SOURCE:
            raise TemplateError(f"the chat template is longer than {_MAX_SOURCE} characters")
        spelled = {"bos_token": bos_text, "eos_token": eos_text}
        self._tokens = {name: text for name, text in spelled.items() if text}
        self._lock = Lock()
        self._process: _Process | None = None  # started by the first render
        self._closed = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `extra` are further variables of the template; none of them replaces one of ours."""
        context = {
            **(extra or {}),
            **self._tokens,
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tools" if tools and "tools" in self._sources else "default"
        frame = json.dumps({"name": name, "context": context}).encode()
        with self._lock:
            answer = self._ask(frame)
        if "fault" in answer:
            raise TemplateError(" ".join(answer["fault"].split()))
        return answer["text"]

    def close(self) -> None:
        """Waits for the render that runs; idempotent."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.end()
                self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def _ask(self, frame: bytes) -> dict[str, str]:
        assert not self._closed, "a render after close"
        if self._process is not None and not self._process.alive:
            self._process.end()
            self._process = None
        if self._process is None:
            self._process = _Process(self._sources)
        try:
            return self._process.ask(frame)
        except TemplateError:
            self._process.end()
            self._process = _Process(self._sources)  # now, so that the next render need not wait for its start
            raise


class _Process:
    """A process that renders. After a TemplateError its state is unknown, and `end` is the only thing left to do."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-I", _WORKER, str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which still has requests to finish
            env={name: os.environ[name] for name in ("TZ", "LANG", "LC_ALL") if name in os.environ},
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to, self._from = self._popen.stdin, self._popen.stdout
        self._readable = select.poll()  # not select(), which knows no descriptor above 1023
        self._readable.register(self._from, select.POLLIN)
        self._ceiling: int | None = None  # unknown until the process has begun
        self._sources = json.dumps(sources).encode()

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, frame: bytes) -> dict[str, str]:
        if self._ceiling is None:
            self._send(self._sources)
            self._receive(_START)
            self._ceiling = footprint(self._popen.pid) + MEMORY
        self._send(frame)
        answer: dict[str, str] = json.loads(self._receive(SECONDS))
        return answer

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._from.close()
        with suppress(BrokenPipeError):  # what was still to be written has no reader any more
            self._to.close()

    def _send(self, frame: bytes) -> None:
        try:
            self._to.write(struct.pack("<I", len(frame)) + frame)
            self._to.flush()
        except BrokenPipeError as fault:
            raise TemplateError(_ENDED) from fault

    def _receive(self, seconds: float) -> bytes:
        deadline = monotonic() + seconds
        (length,) = struct.unpack("<I", self._exactly(4, deadline))
        if length > _MAX_TEXT:
            raise TemplateError(f"the chat template's text has {length} bytes; at most {_MAX_TEXT} are allowed")
        return self._exactly(length, deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        got = bytearray()
        while len(got) < count:
            left = deadline - monotonic()
            if left <= 0:
                raise TemplateError(f"the chat template took more than {SECONDS:g} s")
            if not self._readable.poll(min(left, _WATCH) * 1000):
                self._watch()
                continue
            chunk = os.read(self._from.fileno(), count - len(got))
            if not chunk:
                raise TemplateError(_ENDED)
            got += chunk
        return bytes(got)

    def _watch(self) -> None:
        """Where the system enforces a limit of memory, the process meets that first."""
        if self._ceiling is not None and footprint(self._popen.pid) > self._ceiling:
            raise TemplateError("the chat template asked for more memory than it may have")


_ENDED = "the chat template's process ended, most likely for want of memory"
