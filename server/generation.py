"""Tokens to text: the choices of one request, each decoded, watched for stop strings, and cut where the API says."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Literal

from engine.client import Answer
from engine.messages import Asker, Cost, Delta, Sampled, Sampling
from models.text_stream import TextStream
from quant.errors import EngineError, PunaError
from server.errors import QueueTimeout
from server.recall import Conversation, Miss, Recollection
from server.served import Served
from server.stops import Stops

Reason = Literal["stop", "length"]

_NOTHING = Cost(0, 0.0, 0.0, 0.0)


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

    def __init__(
        self,
        answer: Answer,
        text: TextStream,
        stops: Stops,
        prompt: int,
        sampling: Sampling,
        recollection: Recollection | None,
    ) -> None:
        self.answer = answer
        self.recollection = recollection  # of the first choice for a prompt
        self.prompt = prompt  # tokens
        self.finish: Reason | None = None
        self.said: list[int] = []  # tokens up to the end of this choice, whatever the engine made beyond
        self.cost: Cost | None = None  # the newest; the engine tells it with the first token and with the last
        self._text = text
        self._stops = stops
        self._ends = frozenset(sampling.stop_tokens)
        self._logprobs = sampling.logprobs is not None
        self._waiting: list[tuple[int, Sampled]] = []  # (where its text begins, token) not yet told
        self._decoded = 0  # characters, shown or held
        self._shown = 0
        self._began: float | None = None  # when its first token came
        self._newest = 0.0  # and when the newest

    @property
    def sampled(self) -> int:
        return len(self.said)

    @property
    def spent(self) -> Cost:
        """The cost as far as it is known. One that ended here, and not in the engine, has its decoding timed here."""
        cost = self.cost or _NOTHING
        seen = self._newest - self._began if self._began is not None else 0.0
        return Cost(cost.cached, cost.queued, cost.prefill, cost.decode or seen)

    def heard(self) -> None:
        """News have come; they may wait before they are accepted."""
        self._newest = monotonic()
        if self._began is None:
            self._began = self._newest

    def accept(self, delta: Delta) -> tuple[str, tuple[Sampled, ...]]:
        """The text that the delta lets us show, and its tokens. Sets `finish` with the last."""
        if delta.cost is not None:
            self._spend(delta.cost)
        shown = ""
        for sampled in delta.tokens:
            shown += self._take(sampled)
            if self._stops.met:
                return self._end("stop", shown)
        if delta.finish is None:
            return shown, self._told(len(shown))
        return self._end(_reason(delta), shown + self._rest())

    def _spend(self, cost: Cost) -> None:
        self.cost = cost
        if self.recollection is not None:
            self.recollection.computed(cost.cached)

    def _take(self, sampled: Sampled) -> str:
        self.said.append(sampled.token)
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
    """The choices of one request, as many for each prompt. Whoever holds it closes it; then no sequence runs on.

    News that wait are told together, so a slow reader costs less than a fast one.
    """

    def __init__(self, choices: Sequence[Choice], prompts: int = 1) -> None:
        self.choices = choices
        self._leads = choices[:: len(choices) // prompts]  # the first choice of each prompt
        self._news: deque[tuple[int, Delta] | PunaError] = deque()
        self._awake = asyncio.Event()
        for index, choice in enumerate(choices):
            choice.answer.listen(partial(self._tell, index))

    @property
    def prompt_tokens(self) -> int:
        return sum(choice.prompt for choice in self._leads)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that did not have to be computed for the first choices; None while that is not known."""
        costs = [choice.cost for choice in self._leads if choice.cost is not None]
        return sum(cost.cached for cost in costs) if len(costs) == len(self._leads) else None

    @property
    def completion_tokens(self) -> int:
        return sum(choice.sampled for choice in self.choices)

    @property
    def miss(self) -> Miss | None:
        """Why the first prompt was not found in the cache, if there is more to say than that it is new."""
        recollection = self._leads[0].recollection
        return recollection.miss if recollection is not None else None

    @property
    def over(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Piece:
        """The next piece that has something to say. Raises what ended the generation early."""
        while not self.over:
            piece = self._accept(*await self._next())
            if piece.text or piece.tokens or piece.finish:
                return piece
        raise StopAsyncIteration

    async def begun(self, within: float) -> None:
        """Returns with the first news, or after so many seconds; raises what ended it before it had said anything."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._awake.wait()
        match self._news[0] if self._news else None:
            case PunaError() as error:
                raise error
            case (_, Delta() as delta):
                _check(delta)

    def end(self, choice: int) -> None:
        """The caller has read enough of this choice."""
        self.choices[choice].finish = "stop"
        self.choices[choice].answer.cancel()

    def fail(self, error: PunaError) -> None:
        """Whoever reads the pieces gets this error."""
        self._news.append(error)
        self._awake.set()

    def close(self) -> None:
        for choice in self.choices:
            choice.answer.cancel()
            if choice.recollection is not None:
                choice.recollection.answered(choice.said)
                choice.recollection = None

    def _tell(self, index: int, delta: Delta) -> None:
        self.choices[index].heard()
        self._news.append((index, delta))
        self._awake.set()

    async def _next(self) -> tuple[int, Delta]:
        """The next news of a choice, with those that wait right behind it."""
        while not self._news:
            self._awake.clear()
            await self._awake.wait()
        news = self._news.popleft()
        if isinstance(news, PunaError):
            self.close()
            raise news
        index, delta = news
        while self._news and _continues(self._news[0], index):
            _, more = self._news.popleft()  # type: ignore[misc]  # _continues knows that it is no error
            delta = Delta(delta.id, delta.tokens + more.tokens, more.finish, more.fault, more.cost or delta.cost)
        return index, delta

    def _accept(self, index: int, delta: Delta) -> Piece:
        choice = self.choices[index]
        if choice.finish is not None:
            return Piece(index, "", (), None)
        _check(delta)
        text, tokens = choice.accept(delta)
        if choice.finish is not None:
            choice.answer.cancel()
        return Piece(index, text, tokens, choice.finish)


def _continues(news: tuple[int, Delta] | PunaError, index: int) -> bool:
    """The news are of that choice, and take nothing from those before them when they are told together."""
    return not isinstance(news, PunaError) and news[0] == index and news[1].fault is None


def _check(delta: Delta) -> None:
    """Raises what ended a sequence before it was over."""
    if delta.fault is not None:
        raise EngineError(delta.fault)
    if delta.finish == "expired":
        raise QueueTimeout


def _reason(delta: Delta) -> Reason:
    match delta.finish:
        case "stop" | "length" as reason:
            return reason
        case _:
            raise EngineError("the engine reports a sequence as cancelled that nobody gave up")


def begin(
    served: Served,
    prompts: Sequence[tuple[list[int], Sampling]],
    stops: Sequence[str],
    asker: Asker,
    conversation: Conversation,
) -> list[Choice]:
    """A choice for each of them, all submitted, or none."""
    choices: list[Choice] = []
    newest: list[int] = []
    try:
        for prompt, sampling in prompts:
            recollection = None if prompt is newest else served.memory.recall(conversation, prompt)
            newest = prompt
            answer = served.engine.submit(prompt, sampling, asker)
            text = TextStream(served.card.tokenizer)
            choices.append(Choice(answer, text, Stops(stops), len(prompt), sampling, recollection))
    except PunaError:
        for choice in choices:
            choice.answer.cancel()
        raise
    return choices
