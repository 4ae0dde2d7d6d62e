"""Tokens to text: the choices of one request, each decoded, watched for stop strings, and cut where the API says."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.client import Answer
from engine.messages import Delta, Sampled, Sampling
from models.text_stream import TextStream
from quant.errors import EngineError, PunaError
from server.served import Served
from server.stops import Stops

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """News of a choice: text that may be shown, the tokens behind it, and its end if it has come."""

    choice: int
    text: str
    tokens: tuple[Sampled, ...]  # empty unless logprobs were asked for
    finish: Reason | None


class Choice:
    """One choice's way from tokens to text.

    Shown text never ends inside a character or a stop string. A token is told of with the first text it is part of.
    """

    def __init__(self, answer: Answer, text: TextStream, stops: Stops, sampling: Sampling) -> None:
        self.answer = answer
        self.finish: Reason | None = None
        self.sampled = 0  # tokens up to the end of this choice, whatever the engine made beyond
        self._text = text
        self._stops = stops
        self._ends = frozenset(sampling.stop_tokens)
        self._logprobs = sampling.logprobs is not None
        self._waiting: list[tuple[int, Sampled]] = []  # (where its text begins, token) not yet told
        self._decoded = 0  # characters, shown or held
        self._shown = 0

    def accept(self, delta: Delta) -> tuple[str, tuple[Sampled, ...]]:
        """The text that the delta lets us show, and its tokens. Sets `finish` with the last."""
        shown = ""
        for sampled in delta.tokens:
            shown += self._take(sampled)
            if self._stops.met:
                return self._end("stop", shown)
        match delta.finish:
            case None:
                return shown, self._told(len(shown))
            case "cancelled" | "expired":
                raise EngineError(f"the engine reports a sequence as {delta.finish} that nobody gave up")
            case reason:
                return self._end(reason, shown + self._rest())

    def _take(self, sampled: Sampled) -> str:
        self.sampled += 1
        if sampled.token in self._ends:
            return ""
        if self._logprobs:
            self._waiting.append((self._decoded, sampled))
        text = self._text.push(sampled.token)
        self._decoded += len(text)
        return self._stops.push(text)

    def _rest(self) -> str:
        """What was held back and is shown after all."""
        text = self._text.finish()
        self._decoded += len(text)
        return self._stops.push(text) + self._stops.finish()

    def _end(self, reason: Reason, shown: str) -> tuple[str, tuple[Sampled, ...]]:
        self.finish = "stop" if self._stops.met else reason
        return shown, self._told(len(shown))

    def _told(self, shown: int) -> tuple[Sampled, ...]:
        self._shown += shown
        whole = self.finish is not None and not self._stops.met
        told = [sampled for begin, sampled in self._waiting if whole or begin < self._shown]
        del self._waiting[: len(told)]  # begins ascend, so the told ones are the first
        return tuple(told)


class Generation:
    """The choices of one request. Whoever holds it closes it; after that no sequence of it runs on."""

    def __init__(self, choices: Sequence[Choice], prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._choices = choices
        self._news: asyncio.Queue[tuple[int, Delta] | PunaError] = asyncio.Queue()
        self._pumps = [asyncio.create_task(self._pump(i, choice.answer)) for i, choice in enumerate(choices)]

    @property
    def completion_tokens(self) -> int:
        return sum(choice.sampled for choice in self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Piece:
        """The next piece that has something to say. Raises what ended the generation early."""
        while any(choice.finish is None for choice in self._choices):
            news = await self._news.get()
            if isinstance(news, PunaError):
                self.close()
                raise news
            piece = self._accept(*news)
            if piece.text or piece.tokens or piece.finish:
                return piece
        raise StopAsyncIteration

    def end(self, choice: int) -> None:
        """The caller has read enough of this choice."""
        self._choices[choice].finish = "stop"
        self._hang_up(choice)

    def fail(self, error: PunaError) -> None:
        """Whoever reads the pieces gets this error."""
        self._news.put_nowait(error)

    def close(self) -> None:
        for choice in range(len(self)):
            self._hang_up(choice)

    def _accept(self, index: int, delta: Delta) -> Piece:
        choice = self._choices[index]
        if choice.finish is not None:
            return Piece(index, "", (), None)
        text, tokens = choice.accept(delta)
        if choice.finish is not None:
            self._hang_up(index)
        return Piece(index, text, tokens, choice.finish)

    def _hang_up(self, choice: int) -> None:
        self._pumps[choice].cancel()
        self._choices[choice].answer.cancel()

    async def _pump(self, index: int, answer: Answer) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            try:
                async for delta in answer:
                    self._news.put_nowait((index, delta))
            except PunaError as error:
                self._news.put_nowait(error)


def begin(served: Served, prompts: Sequence[tuple[list[int], Sampling]], stops: Sequence[str]) -> list[Choice]:
    """A choice for each of them, all submitted, or none."""
    choices: list[Choice] = []
    try:
        for prompt, sampling in prompts:
            answer = served.engine.submit(prompt, sampling)
            choices.append(Choice(answer, TextStream(served.card.tokenizer), Stops(stops), sampling))
    except PunaError:
        for choice in choices:
            choice.answer.cancel()
        raise
    return choices
