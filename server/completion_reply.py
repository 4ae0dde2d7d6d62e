"""The answer to a completion request in the API's shapes: whole, or as a stream of chunks."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from time import time

from engine.messages import Sampled
from server.generation import Generation, Piece
from server.logprobs import completion_logprobs
from server.schema import CompletionRequest
from server.served import Served
from server.terms import Terms
from server.usage import timings, usage

Json = dict[str, object]


@dataclass
class _Written:
    """What a choice has written so far, after its echo."""

    text: list[str] = field(default_factory=list)
    tokens: list[Sampled] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.tokens += piece.tokens
        self.finish = piece.finish


class CompletionReply:
    """`echoes` has a text for each choice, which comes before what the model writes."""

    def __init__(
        self,
        served: Served,
        body: CompletionRequest,
        terms: Terms,
        generation: Generation,
        echoes: Sequence[str],
    ) -> None:
        self._id = f"cmpl-{token_hex(12)}"
        self._created = int(time())
        self._served = served
        self._body = body
        self._terms = terms
        self._generation = generation
        self._echoes = echoes
        self._told = [0] * len(generation)  # characters of each choice's tokens, for their offsets

    async def whole(self) -> Json:
        written = [_Written() for _ in self._echoes]
        async for piece in self._generation:
            written[piece.choice].add(piece)
        choices = [
            self._choice(index, echo + "".join(choice.text), choice.tokens, choice.finish)
            for index, (echo, choice) in enumerate(zip(self._echoes, written, strict=True))
        ]
        return self._frame(choices) | {"usage": usage(self._generation)} | self._warned | self._timed

    async def chunks(self) -> AsyncIterator[Json]:
        if self._terms.warnings or any(self._echoes):
            first = [self._choice(index, echo, (), None) for index, echo in enumerate(self._echoes)]
            yield self._chunk(first) | self._warned
        async for piece in self._generation:
            chunk = self._chunk([self._choice(piece.choice, piece.text, piece.tokens, piece.finish)])
            yield chunk | self._timed if self._generation.over and not self._body.wants_usage else chunk
        if self._body.wants_usage:
            yield self._chunk([]) | {"usage": usage(self._generation)} | self._timed

    @property
    def keep_alive(self) -> Json:
        """A chunk that says nothing."""
        return self._chunk([self._choice(0, "", (), None)])

    @property
    def _warned(self) -> Json:
        return {"warnings": self._terms.warnings} if self._terms.warnings else {}

    @property
    def _timed(self) -> Json:
        return {"timings": timings(self._generation)} if self._terms.timed else {}

    def _choice(self, index: int, text: str, tokens: Sequence[Sampled], finish: str | None) -> Json:
        logprobs = None
        if self._body.logprobs is not None and tokens:
            offset = len(self._echoes[index]) + self._told[index]
            logprobs = completion_logprobs(self._served.card.tokenizer, tokens, offset)
            self._told[index] += sum(map(len, logprobs.tokens))
        wire = logprobs.wire if logprobs else None
        return {"index": index, "text": text, "logprobs": wire, "finish_reason": finish}

    def _chunk(self, choices: list[Json]) -> Json:
        return self._frame(choices) | {"usage": None} if self._body.wants_usage else self._frame(choices)

    def _frame(self, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
            **self._terms.told,
            "choices": choices,
        }
