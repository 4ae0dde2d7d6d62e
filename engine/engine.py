"""The loop of the engine: one step is one pass of the model over whatever is to be done."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from engine.batch import Batch
from engine.messages import CacheState, Delta, Report, Sampled, Submit
from engine.sampler import Logits, choose
from engine.scheduler import Scheduler, Work
from engine.sequence import Sequence
from kvcache.pages import PAGE, PagePool
from models.ops import Ops
from quant.errors import EngineError


class Model(Protocol):
    """A network: logits (P, V), one row for each of the batch's picks."""

    def forward(self, ops: Ops) -> mx.array: ...  # evaluated also where P is 0: keys and values are wanted


@dataclass(frozen=True)
class Limits:
    """What a sequence may ask: `context` tokens in all, each below `vocab`; `max_batch` of them run at once."""

    context: int
    vocab: int
    max_batch: int


class Engine:
    """The sequences of one model. It knows token ids, not text. One thread calls it; the pool is its own."""

    def __init__(self, model: Model, ops_of: Callable[[Batch], Ops], pool: PagePool, limits: Limits) -> None:
        assert limits.context <= pool.pages * PAGE, "one sequence alone can always finish"
        self.limits = limits
        self.pool = pool
        self._model = model
        self._ops_of = ops_of
        self._scheduler = Scheduler(pool, limits.max_batch)

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    def submit(self, submit: Submit) -> None:
        """The sequence waits for its turn. EngineError if it could never have one."""
        self._refuse_impossible(submit)
        self._scheduler.add(Sequence(submit, self.limits.context))

    def cancel(self, name: int) -> None:
        """The sequence takes part in no further pass, and its pages are free."""
        self._scheduler.remove(name)

    def step(self) -> tuple[Delta, ...]:
        """News of every sequence that got a token."""
        plan = self._scheduler.plan()
        if not plan:
            return ()
        batch = Batch.of([work.span() for work in plan])
        logits = np.asarray(self._model.forward(self._ops_of(batch)).astype(mx.float32))  # (P, V)
        return self._accept(plan, logits)

    def report(self) -> Report:
        pool = self.pool
        return Report((), CacheState(PAGE, pool.pages, pool.free, pool.pages - pool.free, 0, 0, 0, 0, 0, 0, 0, None))

    def check(self) -> None:
        self._scheduler.check()

    def _accept(self, plan: list[Work], logits: Logits) -> tuple[Delta, ...]:
        rows = iter(logits)
        deltas = []
        for work in plan:
            ends = work.reaches_end
            work.sequence.computed += work.count
            if ends:
                deltas.append(self._next(work.sequence, next(rows)))
        return tuple(deltas)

    def _next(self, sequence: Sequence, row: Logits) -> Delta:
        """The sequence has its next token, or is over."""
        try:
            sampled: Sampled = choose(row, sequence.sampling, sequence.tokens, sequence.prompt)
        except EngineError as error:
            self._scheduler.remove(sequence.id)
            return Delta(sequence.id, (), fault=str(error))
        sequence.tokens.append(sampled.token)
        finish = sequence.finish()
        if finish is not None:
            self._scheduler.remove(sequence.id)
        return Delta(sequence.id, (sampled,), finish)

    def _refuse_impossible(self, submit: Submit) -> None:
        context, vocab = self.limits.context, self.limits.vocab
        if not 0 < len(submit.prompt) < context:
            raise EngineError(f"a prompt has 1 to {context - 1} tokens here; this one has {len(submit.prompt)}")
        if submit.sampling.max_tokens < 1:
            raise EngineError(f"an answer has at least 1 token; {submit.sampling.max_tokens} were asked for")
        for token in (min(submit.prompt), max(submit.prompt), *submit.sampling.logit_bias):
            if not 0 <= token < vocab:
                raise EngineError(f"the model's tokens are 0 to {vocab - 1}; the request has {token}")
