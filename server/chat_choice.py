"""One choice of a chat as the API's deltas: words, tool calls, logprobs, the reason of its end."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import Sampled
from server.generation import Piece
from server.toolcalls import ToolCall, ToolSplitter


@dataclass(frozen=True)
class ChatDelta:
    content: str = ""
    call: ToolCall | None = None
    number: int = 0  # of the call
    tokens: Sequence[Sampled] = ()
    finish: str | None = None


class ChatChoice:
    """Turns pieces of text into deltas, in order. Tokens go with the next delta that there is."""

    def __init__(self, *, tools: bool, parallel: bool) -> None:
        self._splitter = ToolSplitter() if tools else None
        self._parallel = parallel
        self._calls = 0
        self._tokens: list[Sampled] = []
        self.done = False

    def deltas(self, piece: Piece) -> list[ChatDelta]:
        self._tokens += piece.tokens
        deltas: list[ChatDelta] = []
        for part in self._parts(piece):
            deltas.append(self._delta(part))
            if isinstance(part, ToolCall) and not self._parallel:
                return [*deltas, self._finish("tool_calls")]
        if piece.finish is not None:
            called = self._calls and piece.finish == "stop"
            deltas.append(self._finish("tool_calls" if called else piece.finish))
        return deltas

    def _parts(self, piece: Piece) -> Sequence[str | ToolCall]:
        if self._splitter is None:
            return [piece.text] if piece.text or piece.tokens else []
        return self._splitter.push(piece.text) + (self._splitter.finish() if piece.finish else [])

    def _delta(self, part: str | ToolCall) -> ChatDelta:
        tokens, self._tokens = self._tokens, []
        if isinstance(part, str):
            return ChatDelta(part, tokens=tokens)
        self._calls += 1
        return ChatDelta(call=part, number=self._calls - 1, tokens=tokens)

    def _finish(self, reason: str) -> ChatDelta:
        self.done = True
        tokens, self._tokens = self._tokens, []
        return ChatDelta(tokens=tokens, finish=reason)
