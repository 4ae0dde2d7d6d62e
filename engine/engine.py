"""The loop of the engine: one step is one pass of the model over whatever is to be done."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from engine.away import Away
from engine.batch import Batch
from engine.messages import Delta, Report, Sampled, Submit
from engine.pace import Pace
from engine.report import report_of
from engine.sampler import Logits, choose
from engine.scheduler import COLD_BESIDE_DECODE, Scheduler
from engine.sequence import Sequence
from engine.work import Work
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.ops import Ops
from quant.errors import EngineError

CHECK = 10.0  # seconds between two checks of everything
LINGER = 0.01  # seconds that a message waits at most where only the CPU beside is at work


class Model(Protocol):
    """A network: logits (P, V), one row for each of the batch's picks."""

    def forward(self, ops: Ops) -> mx.array: ...  # evaluated also where P is 0: keys and values are wanted


class PassOps(Ops, Protocol):
    """The verbs of one pass. A pass that is described and never begins leaves no trace."""

    @property
    def stale(self) -> bool:
        """The pages are others now than those that the pass was described over."""
        ...

    def begin(self) -> None:
        """What the pass writes is what the pages hold, once it has been computed; no other pass is under way."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a sequence may ask: `context` tokens in all, each below `vocab`; `max_batch` of them run at once."""

    context: int
    vocab: int
    max_batch: int


@dataclass(frozen=True)
class Pass:
    """What a pass does, and the logits (P, V) that it is to give."""

    works: list[Work]
    batch: Batch
    pages: list[list[int]]  # of each work's sequence, as the batch knows them
    ops: PassOps
    logits: mx.array


@dataclass(frozen=True)
class Running:
    """A pass under way: how many answers it goes on with, and the cost of the prompts in it."""

    of: Pass
    started: float
    answers: int
    cost: float


class Engine:
    """The sequences of one model. It knows token ids, not text. One thread calls it; the cache is its own.

    Whoever calls `start` and `finish` has the time between them for other things; messages are obeyed before a start.
    Where `forward` does nothing but describe a pass (`lazy`), the next one is described while this one runs, and is
    forgotten if things turn out otherwise.

    With a CPU beside (`away`) a start also takes what is over there and sends what comes next; it never waits for it.
    """

    def __init__(
        self,
        model: Model,
        ops_of: Callable[[Batch], PassOps],
        cache: PageCache,
        limits: Limits,
        *,
        pace: Pace | None = None,
        lazy: bool = False,
        decoded: int | None = None,
        away: Away | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """For `decoded` see Sequence."""
        assert limits.context <= cache.pool.pages * PAGE, "one sequence alone can always finish"
        assert away is None or (decoded == 1 and away.tokens >= limits.context), "the CPU takes all but a prompt's last"
        self.limits = limits
        self.cache = cache
        self._model = model
        self._ops_of = ops_of
        self._pace = pace or Pace(0.0)
        self._lazy = lazy
        self._decoded = decoded
        self._away = away
        self._clock = clock
        self._scheduler = Scheduler(cache, limits.max_batch, self._pace, away)
        self._prepared: Pass | None = None
        self._looked_up = self._found = 0
        self._checked = -CHECK

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    @property
    def answers_serve(self) -> bool:
        """What an answer left in the cache is found by a prompt."""
        return self._decoded is None

    def submit(self, submit: Submit) -> None:
        """The sequence waits for its turn. EngineError if it could never have one."""
        self._refuse_impossible(submit)
        self._prepared = None
        self._scheduler.add(Sequence(submit, self.limits.context, self._clock(), self._decoded))

    def cancel(self, name: int) -> None:
        """The sequence takes part in no further pass, and holds no page."""
        self._prepared = None
        self._scheduler.remove(name)
        if self._away is not None:
            self._away.look()

    def step(self) -> tuple[Delta, ...]:
        """News of every sequence that got a token, or waited too long for one."""
        expired = self.expire()
        running = self.start()
        if running is None:
            self.linger()
        return (*expired, *(self.finish(running) if running else ()))

    def expire(self) -> tuple[Delta, ...]:
        """News of those who waited too long for their turn."""
        return tuple(Delta(sequence.id, (), "expired") for sequence in self._scheduler.expired(self._clock()))

    def start(self) -> Running | None:
        """The next pass is under way; None if there is nothing to compute here."""
        self._fetch()
        following = self._following() or self._planned()
        if following is None:
            return None
        prompts = [work for work in following.works if not work.answers]
        cost = sum(self._pace.cost(work.sequence.computed, work.count) for work in prompts)
        started = self._clock()
        following.ops.begin()
        mx.async_eval(following.logits)  # type: ignore[no-untyped-call]
        return Running(following, started, len(following.works) - len(prompts), cost)

    def linger(self) -> None:
        """Where there is nothing to compute here, a pass on the CPU has a moment to end."""
        if self._away is not None:
            self._away.wait(LINGER)

    def prepare(self, running: Running) -> None:
        """While the pass runs: the one after it is described, as far as that can be known."""
        following = self._scheduler.next_after(running.of.works) if self._lazy else None
        self._prepared = self._described(following) if following else None

    def finish(self, running: Running) -> tuple[Delta, ...]:
        """The pass is over; news of every sequence that got a token."""
        logits = np.asarray(running.of.logits.astype(mx.float32))  # (P, V)
        self._pace.learn(running.answers, running.cost, self._clock() - running.started)
        rows = iter(logits)
        deltas = []
        for work in running.of.works:
            ends = work.reaches_end
            self._scheduler.accept(work)
            if ends:
                deltas.append(self._next(work.sequence, next(rows)))
        return tuple(deltas)

    def close(self) -> None:
        """Cold pages are on a further tier, as far as it takes them; nothing runs any more."""
        if self._away is not None:
            self._away.close()
        self.cache.shut()

    def settle(self) -> None:
        """When there is nothing else to do: cold pages go to a further tier."""
        self.cache.settle(0, 8)

    def report(self) -> Report:
        found = (self._looked_up, self._found)
        return report_of(self._scheduler, self.cache, found, self._clock())

    def check(self) -> None:
        self._scheduler.check()

    def check_now_and_then(self) -> None:
        """In production, when there is nothing to do: it takes some milliseconds where pages are many."""
        if self._clock() - self._checked > CHECK:
            self.check()
            self._checked = self._clock()

    def _planned(self) -> Pass | None:
        self._prepared = None
        works = self._sent(self._scheduler.plan(self._clock()))
        return self._described([(work, 0) for work in works]) if works else None

    def _sent(self, works: list[Work]) -> list[Work]:
        """What is left to do here, after prompts were sent to the CPU."""
        prompts = [work for work in works if not work.decodes]
        if self._away is None or not prompts:
            return works
        self._away.send(prompts)
        return [work for work in works if work.decodes]

    def _fetch(self) -> None:
        """What was computed on the CPU is in the pages of those who still want it."""
        if self._away is None:
            return
        self._away.look()
        if self._away.done:
            self._prepared = None
            for work in self._away.fetch():
                self._scheduler.accept(work)

    def _described(self, works: list[tuple[Work, int]]) -> Pass:
        """Each with how many of its sequence's tokens are under way."""
        batch = Batch.of([work.span(ahead) for work, ahead in works])
        pages = [list(work.pages) for work, _ in works]
        ops = self._ops_of(batch)
        return Pass([work for work, _ in works], batch, pages, ops, self._model.forward(ops))

    def _following(self) -> Pass | None:
        """What was prepared, with the tokens that are known by now, if the pages are still those."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self.cache.settle(0, COLD_BESIDE_DECODE)
        if prepared is None or prepared.ops.stale:
            return None
        if any(work.pages != pages for work, pages in zip(prepared.works, prepared.pages, strict=True)):
            return None
        for work, row in zip(prepared.works, prepared.batch.starts[:-1], strict=True):
            if work.count == 1:
                prepared.batch.tokens[row] = work.sequence.tokens[work.sequence.computed]
        return prepared

    def _next(self, sequence: Sequence, row: Logits) -> Delta:
        """The sequence has its next token, or is over."""
        try:
            sampled: Sampled = choose(row, sequence.sampling, sequence.tokens, sequence.prompt)
        except EngineError as error:
            self._end(sequence)
            return Delta(sequence.id, (), fault=str(error))
        first = sequence.answered is None
        if first:
            self._looked_up += sequence.prompt
            self._found += sequence.cached
            sequence.answered = self._clock()
        sequence.add(sampled.token)
        self._scheduler.answered(sequence)
        finish = sequence.finish()
        cost = sequence.cost(self._clock()) if first or finish else None
        if finish is not None:
            self._end(sequence)
        return Delta(sequence.id, (sampled,), finish, cost=cost)

    def _end(self, sequence: Sequence) -> None:
        self._prepared = None
        self._scheduler.remove(sequence.id)

    def _refuse_impossible(self, submit: Submit) -> None:
        context, vocab = self.limits.context, self.limits.vocab
        if not 0 < len(submit.prompt) < context:
            raise EngineError(f"a prompt has 1 to {context - 1} tokens here; this one has {len(submit.prompt)}")
        if submit.sampling.max_tokens < 1:
            raise EngineError(f"an answer has at least 1 token; {submit.sampling.max_tokens} were asked for")
        for token in (min(submit.prompt), max(submit.prompt), *submit.sampling.logit_bias):
            if not 0 <= token < vocab:
                raise EngineError(f"the model's tokens are 0 to {vocab - 1}; the request has {token}")
