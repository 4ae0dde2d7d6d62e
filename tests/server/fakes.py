"""A model without weights: a tokeniser of bytes, a template of three words, an engine that reads from a script."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import tokenizers

from engine.client import NOBODY
from engine.messages import Asker, Cost, Delta, Logprob, Ready, Report, Sampled, Sampling
from models.library import Library, added
from models.pieces import CHARACTER_OF_BYTE, Pieces
from models.tokenizer import Tokenizer
from quant.errors import EngineError, PunaError, TemplateError
from server.served import Served

BOS, USER, ASSISTANT, END = 256, 257, 258, 259
SPELLINGS = {BOS: "<|bos|>", USER: "<|user|>", ASSISTANT: "<|assistant|>", END: "<|end|>"}
CONTEXT = 512

Script = Callable[[list[int], Sampling], Iterable[int]]


def says(text: str) -> Script:
    """An engine that answers everything with this text and its end."""
    return lambda prompt, sampling: [*text.encode(), END]


def echoes(prompt: list[int], sampling: Sampling) -> Iterable[int]:
    """An engine that says its prompt again, without control tokens."""
    return [*(token for token in prompt if token < 256), END]


def _library() -> tokenizers.Tokenizer:
    """Every byte is a token, and above them lie the control tokens."""
    vocabulary = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.add_tokens(added(SPELLINGS.values(), special=True))
    return library


def byte_tokenizer() -> Tokenizer:
    pieces = Pieces([*(bytes([byte]) for byte in range(256)), *(name.encode() for name in SPELLINGS.values())])
    library = Library.of(_library(), _library())
    control = frozenset(SPELLINGS)
    return Tokenizer(library, pieces, bos=BOS, eos=END, add_bos=True, ends=frozenset({END}), control=control)


class PlainTemplate:
    """Writes roles as control tokens, and what else it was given as words."""

    def render(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None,
        *,
        add_generation_prompt: bool = True,
        extra: dict[str, object] | None = None,
    ) -> str:
        if messages[0]["content"] == "refuse me":
            raise TemplateError("this conversation is refused")
        turns = [f"<|user|>{message['role']}: {message['content']}" for message in messages]
        calls = [f" calls {message['tool_calls']}" for message in messages if "tool_calls" in message]
        tail = [f" tools {tools}" if tools else "", f" extra {extra}" if extra else "", "<|assistant|>"]
        return "".join([*turns, *calls, *tail])


@dataclass(frozen=True)
class FakeCard:
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    template: PlainTemplate | None = field(default_factory=PlainTemplate)

    def close(self) -> None:
        pass


class FakeAnswer:
    """A sequence that says its script, a token a step, as the engine's `submit` promises."""

    def __init__(self, engine: "FakeEngine", prompt: list[int], sampling: Sampling, asker: Asker) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.asker = asker
        self.cancelled = False
        self._engine = engine
        self._news = self._say()
        self._telling: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        return await anext(self._news)

    def listen(self, tell: Callable[[Delta], None]) -> None:
        self._telling = asyncio.create_task(self._tell(tell))

    async def _tell(self, tell: Callable[[Delta], None]) -> None:
        try:
            async for delta in self._news:
                tell(delta)
        except EngineError as error:
            tell(Delta(0, (), fault=str(error)))

    def cancel(self) -> None:
        self.cancelled = True
        if self._telling is not None:
            self._telling.cancel()
        self._engine.open_answers.discard(self)
        self._engine.changed.set()

    async def _say(self) -> AsyncIterator[Delta]:
        if not await self._turn():
            self._engine.open_answers.discard(self)
            yield Delta(0, (), "expired")
            return
        for index, token in enumerate(self._engine.script(self.prompt, self.sampling)):
            await self._engine.step(index)
            finish = "stop" if token in self.sampling.stop_tokens else None
            if finish is None and index + 1 == self.sampling.max_tokens:
                finish = "length"
            if finish is not None:
                self._engine.open_answers.discard(self)
            cost = self._engine.cost_of(self.prompt) if index == 0 or finish else None
            yield Delta(index, (self._sampled(token),), finish, cost=cost)  # type: ignore[arg-type]
            if finish is not None:
                return

    async def _turn(self) -> bool:
        """Whether it comes while the patience lasts."""
        try:
            async with asyncio.timeout(self.asker.patience):
                await self._engine.turns.wait()
        except TimeoutError:
            return False
        return True

    def _sampled(self, token: int) -> Sampled:
        if self.sampling.logprobs is None:
            return Sampled(token)
        top = tuple(Logprob(token + i, -0.5 - i) for i in range(self.sampling.logprobs))
        return Sampled(token, -0.5, top)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeEngine:
    """`holds_at` is the token before which every sequence waits until `go` is set; `dies_at`, where the engine dies.

    Nobody has a turn before `turns` is set, which it is unless a test clears it. `cached` is the part of every prompt
    that is found in the cache. With `at_once`, all tokens are there before anyone can read the first.
    """

    script: Script = echoes
    ready: Ready = field(default_factory=lambda: Ready(CONTEXT, 64, 32, "cpu", 0.0))
    alive: bool = True
    holds_at: int | None = None
    dies_at: int | None = None
    fault: PunaError | None = None  # what submit raises
    answers: list[FakeAnswer] = field(default_factory=list)
    open_answers: set[FakeAnswer] = field(default_factory=set)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    cached: int = 0
    at_once: bool = False
    turns: asyncio.Event = field(default_factory=_set)
    report_of: Report | None = None  # None: as if the engine were down

    @property
    def open(self) -> int:
        return len(self.open_answers)

    def submit(self, prompt: Sequence[int], sampling: Sampling, asker: Asker = NOBODY) -> FakeAnswer:
        if self.fault is not None:
            raise self.fault
        answer = FakeAnswer(self, list(prompt), sampling, asker)
        self.answers.append(answer)
        self.open_answers.add(answer)
        self.changed.set()
        return answer

    async def report(self) -> Report:
        if self.report_of is None:
            raise EngineError("the engine is being loaded")
        return self.report_of

    async def close(self) -> None:
        self.closed = True

    def cost_of(self, prompt: list[int]) -> Cost:
        return Cost(min(self.cached, len(prompt) - 1), 0.25, 0.5, 2.0)

    async def step(self, index: int) -> None:
        if not self.at_once:
            await asyncio.sleep(0)
        if index == self.holds_at:
            await self.go.wait()
        if index == self.dies_at:
            raise EngineError("the engine died (signal 9)")

    async def becomes(self, count: int) -> None:
        """Waits until so many sequences are open."""
        while self.open != count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)


def served(engine: FakeEngine, card: FakeCard | None = None) -> Served:
    return Served("fake", card or FakeCard(), engine)
