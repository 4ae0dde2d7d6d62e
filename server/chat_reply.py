"""The answer to a chat request in the API's shapes: whole, or as a stream of chunks."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from time import time

from engine.messages import Sampled
from server.chat_choice import ChatChoice, ChatDelta
from server.generation import Generation
from server.logprobs import chat_logprobs
from server.schema import ChatRequest
from server.served import Served
from server.terms import Terms
from server.usage import timings, usage

Json = dict[str, object]


@dataclass
class _Spoken:
    """What a choice has said so far."""

    content: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    tokens: list[Sampled] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: ChatDelta) -> None:
        if delta.content:
            self.content.append(delta.content)
        if delta.call is not None:
            self.calls.append(delta.call.wire)
        self.tokens += delta.tokens
        self.finish = delta.finish

    @property
    def message(self) -> Json:
        message: Json = {"role": "assistant", "content": "".join(self.content), "refusal": None}
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = message["content"] or None
        return message


class ChatReply:
    def __init__(self, served: Served, body: ChatRequest, terms: Terms, generation: Generation) -> None:
        self._id = f"chatcmpl-{token_hex(12)}"
        self._created = int(time())
        self._served = served
        self._body = body
        self._terms = terms
        self._generation = generation
        parallel = body.parallel_tool_calls is not False
        self._choices = [ChatChoice(tools=body.uses_tools, parallel=parallel) for _ in range(len(generation))]

    async def whole(self) -> Json:
        spoken = [_Spoken() for _ in self._choices]
        async for index, delta in self._deltas():
            spoken[index].add(delta)
        choices: list[Json] = [
            {
                "index": index,
                "message": choice.message,
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(spoken)
        ]
        return self._frame("chat.completion", choices) | {"usage": usage(self._generation)} | self._warned | self._timed

    async def chunks(self) -> AsyncIterator[Json]:
        first = [self._choice(index, {"role": "assistant", "content": ""}) for index in range(len(self._choices))]
        yield self._chunk(first) | self._warned
        async for index, delta in self._deltas():
            chunk = self._chunk([self._choice(index, _wire(delta), delta)])
            last = delta.finish is not None and all(choice.done for choice in self._choices)
            yield chunk | self._timed if last and not self._body.wants_usage else chunk
        if self._body.wants_usage:
            yield self._chunk([]) | {"usage": usage(self._generation)} | self._timed

    @property
    def keep_alive(self) -> Json:
        """A chunk that says nothing."""
        return self._chunk([self._choice(0, {})])

    @property
    def _warned(self) -> Json:
        return {"warnings": self._terms.warnings} if self._terms.warnings else {}

    @property
    def _timed(self) -> Json:
        return {"timings": timings(self._generation)} if self._terms.timed else {}

    async def _deltas(self) -> AsyncIterator[tuple[int, ChatDelta]]:
        async for piece in self._generation:
            choice = self._choices[piece.choice]
            for delta in choice.deltas(piece):
                yield piece.choice, delta
            if choice.done and piece.finish is None:
                self._generation.end(piece.choice)

    def _choice(self, index: int, delta: Json, source: ChatDelta | None = None) -> Json:
        tokens, finish = (source.tokens, source.finish) if source else ((), None)
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Sampled]) -> Json | None:
        return chat_logprobs(self._served.card.tokenizer, tokens) if self._body.logprobs else None

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = self._frame("chat.completion.chunk", choices)
        return chunk | {"usage": None} if self._body.wants_usage else chunk

    def _frame(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
            **self._terms.told,
            "choices": choices,
        }


def _wire(delta: ChatDelta) -> Json:
    wire: Json = {}
    if delta.content:
        wire["content"] = delta.content
    if delta.call is not None:
        wire["tool_calls"] = [{"index": delta.number, **delta.call.wire}]
    return wire
