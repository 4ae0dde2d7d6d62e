"""Tool calls in text, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, split from the words around them."""

from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex

import msgspec

from server.stops import Stops

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # JSON, as the API has it

    @property
    def wire(self) -> dict[str, object]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


Part = str | ToolCall


class _Spelled(msgspec.Struct):
    name: str
    arguments: dict[str, object] = {}


_CALL = msgspec.json.Decoder(_Spelled)


def new_id() -> str:
    return f"call_{token_hex(12)}"


class ToolSplitter:
    """Text in, words and calls out, in order. What looks like a call and is none comes out as it came in.

    White space beside a call belongs to neither; other white space waits until words follow it.
    """

    def __init__(self, new_id: Callable[[], str] = new_id) -> None:
        self._new_id = new_id
        self._tag = Stops([OPEN])
        self._inside: str | None = None  # the text since OPEN
        self._space = ""
        self._after_call = False

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text:
            text = self._words(text, parts) if self._inside is None else self._call(self._inside + text, parts)
        return parts

    def finish(self) -> list[Part]:
        """The rest. A call whose closing tag is missing counts when its JSON is whole."""
        parts: list[Part] = []
        if self._inside is not None:
            self._add_call(self._inside, "", parts)
        else:
            self._add_words(self._tag.finish(), parts)
        if self._space and not self._after_call:
            parts.append(self._space)
        return parts

    def _words(self, text: str, parts: list[Part]) -> str:
        """Takes words up to a tag; returns the text after it."""
        self._add_words(self._tag.push(text), parts)
        if not self._tag.met:
            return ""
        after = self._tag.after
        self._inside, self._tag = "", Stops([OPEN])
        return after

    def _call(self, text: str, parts: list[Part]) -> str:
        """Takes the inside of a call up to its end; returns the text after it."""
        inside, closed, after = text.partition(CLOSE)
        if not closed:
            self._inside = text
            return ""
        self._inside = None
        self._add_call(inside, CLOSE, parts)
        return after

    def _add_words(self, text: str, parts: list[Part]) -> None:
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        words = text.rstrip()
        self._space = text[len(words) :]
        if words:
            self._after_call = False
            parts.append(words)

    def _add_call(self, inside: str, close: str, parts: list[Part]) -> None:
        call = self._read(inside)
        if call is None:
            self._add_words(OPEN + inside + close, parts)
        else:
            self._after_call, self._space = True, ""
            parts.append(call)

    def _read(self, inside: str) -> ToolCall | None:
        """The call that the text spells, if it does."""
        try:
            call = _CALL.decode(inside)
        except (msgspec.DecodeError, RecursionError):
            return None
        arguments = msgspec.json.encode(call.arguments).decode()
        return ToolCall(self._new_id(), call.name, arguments)
