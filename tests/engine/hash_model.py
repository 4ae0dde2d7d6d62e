"""A model without weights whose logits are a hash of the history, read back from the pages it was written to."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import mlx.core as mx
import msgspec
import numpy as np

from engine.away import Away
from engine.batch import Batch, Span
from engine.engine import Engine, Limits, PassOps
from engine.messages import Delta, Sampling, Submit
from engine.pace import PREFILL, Pace
from engine.sequence import MARK
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from kvcache.tier import Tier
from models.ops import Ops

VOCAB = 96


@dataclass(frozen=True)
class Handed:
    """A batch in place of the verbs that a model would ask: this one computes by itself, and writes as it does."""

    batch: Batch
    stale: bool = False

    def begin(self) -> None: ...


def handed(batch: Batch) -> PassOps:
    return cast(PassOps, Handed(batch))


class HashModel:
    """A page given to two sequences, a token computed twice or never or in another class, a row mixed up: each changes
    the logits."""

    def __init__(self, pages: int) -> None:
        self._pages = np.full((pages, PAGE), -1, np.int32)
        self.passes: list[Batch] = []

    @property
    def page_bytes(self) -> int:
        return 4 * PAGE

    def copy(self, source: int, target: int) -> None:
        self._pages[target] = self._pages[source]

    def read(self, page: int) -> bytes:
        return bytes(self._pages[page].tobytes())

    def write(self, page: int, content: bytes) -> None:
        self._pages[page] = np.frombuffer(content, np.int32)

    def snapshot(self, pages: Sequence[int], tokens: int) -> list[mx.array]:
        return [mx.array(self._pages[list(pages)].reshape(-1)[:tokens])]

    def put(self, pages: Sequence[int], first: int, parts: Sequence[mx.array]) -> None:
        at = first + np.arange(len(parts[0]))
        self._pages[np.array(pages)[at // PAGE], at % PAGE] = np.array(parts[0])

    def forward(self, ops: Ops) -> mx.array:
        batch = cast(Handed, ops).batch  # the engine hands over what `ops_of` gave it
        self.passes.append(batch)
        for i, past in enumerate(batch.past):
            rows = slice(batch.starts[i], batch.starts[i + 1])
            positions = past + np.arange(rows.stop - rows.start)
            np.testing.assert_array_equal(batch.positions[rows], positions)
            classed = batch.tokens[rows] | (MARK if batch.decodes[i] else 0)
            self._pages[batch.tables[i][positions // PAGE], positions % PAGE] = classed
        rows_of_logits = [self._logits(batch, int(pick)) for pick in batch.picks]
        return mx.array(np.array(rows_of_logits, np.float32).reshape(len(rows_of_logits), VOCAB))

    def _logits(self, batch: Batch, row: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        sequence = int(np.searchsorted(batch.starts, row, side="right")) - 1
        seen = np.arange(batch.positions[row] + 1)
        history = self._pages[batch.tables[sequence][seen // PAGE], seen % PAGE]
        return logits_after(history.tolist())


def logits_after(history: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    digest = hashlib.sha256(np.array(history, np.int32).tobytes()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32)).standard_normal(VOCAB) * 3


class HashPasses:
    """The CPU beside: what it makes of a token hangs on all tokens before, as it was given them. `late` holds it up."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.late = False
        self.asked: list[Sequence[Span]] = []
        self.abandoned = 0
        self._made: list[list[mx.array]] | None = None

    @property
    def running(self) -> bool:
        return self._made is not None

    @property
    def done(self) -> bool:
        return self.running and not self.late

    def start(self, spans: Sequence[Span], pasts: Sequence[Sequence[mx.array]]) -> None:
        assert not self.running, "one pass at a time"
        assert sum(span.past + len(span.tokens) for span in spans) <= self.tokens
        assert not any(span.decodes or span.wants_logits for span in spans)
        assert [len(past[0]) for past in pasts] == [span.past for span in spans]
        self.asked.append(spans)
        self._made = [[_chained(past[0], span.tokens)] for past, span in zip(pasts, spans, strict=True)]

    def wait(self, seconds: float) -> bool:
        return self.done

    def take(self) -> list[list[mx.array]]:
        assert self.done
        assert self._made is not None
        made, self._made = self._made, None
        return made

    def abandon(self) -> None:
        self.abandoned += 1
        self._made = None

    def close(self) -> None:
        self._made = None


def _chained(past: mx.array, tokens: Sequence[int]) -> mx.array:
    """From -1 down, so that nothing made on the GPU is like it."""
    at, made = int(np.array(past)[-1]) if len(past) else 0, []
    for token in tokens:
        at = -1 - crc32(np.array([at, token], np.int32).tobytes()) % MARK
        made.append(at)
    return mx.array(np.array(made, np.int32))


def engine_of(
    pages: int,
    max_batch: int = 16,
    context: int | None = None,
    tier: Tier | None = None,
    chunk: int = PREFILL,
    decoded: int | None = None,
) -> tuple[Engine, HashModel]:
    """An engine whose passes take `chunk` tokens of prompts; where one token of them is decoded, others are away."""
    model = HashModel(pages)
    limits = Limits(context=context or pages * PAGE, vocab=VOCAB, max_batch=max_batch)
    cache = PageCache(pages, model, tier, b"hash")
    away = away_of(model, limits.context, decoded)
    return Engine(model, handed, cache, limits, pace=Chunks(chunk), decoded=decoded, away=away), model


def away_of(model: HashModel, tokens: int, decoded: int | None) -> Away | None:
    return Away(HashPasses(tokens), model) if decoded == 1 else None


class Chunks(Pace):
    """A pace that knows no time."""

    def __init__(self, chunk: int) -> None:
        super().__init__(0.0)
        self._chunk = chunk

    def budget(self, past: int, answers: int) -> float:
        return self._chunk


def finish_all(engine: Engine, answers: dict[int, list[Delta]]) -> None:
    """Every sequence is over; the laws held after every step."""
    while engine.busy:
        collect(engine.step(), answers)
        engine.check()


def collect(deltas: tuple[Delta, ...], answers: dict[int, list[Delta]]) -> None:
    """What law 1 speaks of: a cost hangs on the machine."""
    for delta in deltas:
        answers.setdefault(delta.id, []).append(msgspec.structs.replace(delta, cost=None))


def alone(prompt: list[int], sampling: Sampling, pages: int = 64, decoded: int | None = None) -> list[Delta]:
    """What the request gets from an engine that it has for itself, as request 0."""
    engine, _ = engine_of(pages, decoded=decoded)
    engine.submit(Submit(0, prompt, sampling))
    answers: dict[int, list[Delta]] = {}
    finish_all(engine, answers)
    return answers[0]
