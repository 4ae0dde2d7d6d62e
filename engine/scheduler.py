"""Who takes part in the next pass, with how many tokens, and who gets the pages."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from engine.batch import Span
from engine.sequence import Sequence
from kvcache.pages import PagePool

PREFILL = 512  # prompt tokens in a pass when nobody else waits for a token
PREFILL_BESIDE_DECODE = 128  # and when somebody does: his next token waits for them


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a sequence."""

    sequence: Sequence
    count: int

    @property
    def reaches_end(self) -> bool:
        return self.count == self.sequence.todo

    def span(self) -> Span:
        s = self.sequence
        return Span(s.tokens[s.computed : s.computed + self.count], s.computed, s.pages, self.reaches_end)


class Scheduler:
    """Sequences in the order of arrival: `running`, then `waiting`; only running ones hold pages. Owner: the engine.

    Whoever came first goes first: when pages run out, the youngest gives its own back and waits, to be computed again.
    So the oldest always goes on, and everybody comes to be the oldest. (That its tokens stay the same is law 1.)
    """

    def __init__(self, pool: PagePool, max_batch: int) -> None:
        self._pool = pool
        self._max_batch = max_batch
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, name: int) -> None:
        """The sequence is forgotten and its pages are free. One that is over already is no fault: news cross."""
        for queue in (self.running, self.waiting):
            for sequence in queue:
                if sequence.id == name:
                    queue.remove(sequence)
                    self._release(sequence)
                    return

    def plan(self) -> list[Work]:
        """Work for every running sequence that the pass has room for; empty only if there is no sequence at all."""
        self._grow()
        self._admit()
        decoding = [s for s in self.running if s.todo == 1]
        prefill = [s for s in self.running if s.todo > 1]
        budget = PREFILL_BESIDE_DECODE if decoding else PREFILL
        return [Work(s, 1) for s in decoding] + list(_shares(prefill, budget))

    def check(self) -> None:
        """The laws of the scheduler, its sequences and the pool hold together."""
        self._pool.check()
        held = [page for s in self.running for page in s.pages]
        assert len(held) == len(set(held)) == self._pool.pages - self._pool.free, "a page is held by nobody, or twice"
        assert all(not s.pages and s.computed == 0 for s in self.waiting), "a waiting sequence holds something"
        assert len(self.running) <= self._max_batch, "more sequences run than a pass has room for"

    def _grow(self) -> None:
        """Every running sequence has pages for all its tokens; those for whom there were none wait again."""
        for sequence in list(self.running):
            while sequence in self.running and sequence.pages_short > self._pool.free:
                self._put_back(self.running[-1])
            if sequence in self.running:
                sequence.pages += self._pool.take(sequence.pages_short)

    def _admit(self) -> None:
        """The first of the waiting run, as long as there is room, and a page for each other to grow into."""
        while self.waiting and len(self.running) < self._max_batch:
            first = self.waiting[0]
            if first.pages_short + len(self.running) > self._pool.free:
                return
            first.pages += self._pool.take(first.pages_short)
            self.running.append(self.waiting.popleft())

    def _put_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        for page in sequence.pages:
            self._pool.drop(page)
        sequence.pages = []
        sequence.computed = 0


def _shares(sequences: list[Sequence], budget: int) -> Iterator[Work]:
    """The budget in equal parts; what short ones leave over goes to the longer, so that no prompt blocks the others.

    Where there are more of them than tokens in the budget, those who came first have one each.
    """
    members = sorted(sequences[:budget], key=lambda s: s.todo)
    for i, sequence in enumerate(members):
        share = min(sequence.todo, budget // (len(members) - i))
        yield Work(sequence, share)
        budget -= share
