"""Prompts on their way through the CPU while a GPU decodes: what is computed there for whom, and what comes back."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from engine.batch import Span
from engine.pace import PIECE
from engine.sequence import Sequence
from engine.work import Work
from kvcache.lease import Lease


class Passes(Protocol):
    """Passes over prompts in a thread of their own, one at a time (engine/beside.py)."""

    tokens: int

    @property
    def running(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    def start(self, spans: Many[Span], pasts: Many[Many[mx.array]]) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def take(self) -> list[list[mx.array]]: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...


class Pool(Protocol):
    """Where keys and values are taken from and put back, while no pass of the GPU runs."""

    def snapshot(self, pages: Many[int], tokens: int) -> list[mx.array]: ...
    def put(self, pages: Many[int], first: int, parts: Many[mx.array]) -> None: ...


@dataclass(frozen=True)
class Errand:
    """Work that is done there, and the lease whose pages are to hold what comes of it, after `past` tokens."""

    work: Work
    lease: Lease
    past: int

    @property
    def wanted(self) -> bool:
        """A sequence that was cancelled, or put back, has closed its lease; its next one knows nothing of this."""
        return self.lease.open


class Away:
    """The CPU's pass over prompts, from its start until it was taken. Owner: the engine.

    It has a copy of what it reads and gives back what it made, so nobody ever waits for it: who leaves meanwhile closes
    his lease, as always, and what was made for him is dropped.
    """

    def __init__(self, passes: Passes, pool: Pool) -> None:
        self._passes = passes
        self._pool = pool
        self._errands: list[Errand] = []

    @property
    def tokens(self) -> int:
        """Of all spans of a pass at most, those before them included."""
        return self._passes.tokens

    @property
    def free(self) -> bool:
        return not self._passes.running

    @property
    def done(self) -> bool:
        """A pass is over, and was not taken."""
        return self._passes.done

    @property
    def sequences(self) -> list[Sequence]:
        """For whom something is computed there."""
        return [errand.work.sequence for errand in self._errands if errand.wanted]

    def next(self, weights: Mapping[Sequence, float]) -> Iterator[Work]:
        """What the next pass takes of prompts, given the oldest first: a piece, shared by weight.

        Nothing while one is under way. When copies have no more room for those before, the younger wait.
        """
        shares, room = _shared(weights) if self.free else {}, self.tokens
        for sequence, share in shares.items():
            count = min(share, room - sequence.computed)
            if count <= 0:
                return
            yield Work(sequence, count)
            room -= sequence.computed + count

    def send(self, works: list[Work]) -> None:
        """A pass is under way. Of each sequence the pages have room for the work."""
        leases = [(work, work.sequence.lease) for work in works]
        self._errands = [Errand(work, lease, lease.filled) for work, lease in leases if lease]
        pasts = [self._pool.snapshot(e.lease.pages, e.past) for e in self._errands]
        self._passes.start([work.span(0) for work in works], pasts)

    def fetch(self) -> list[Work]:
        """Works of the pass that is over whose keys and values are in their pages now."""
        errands, self._errands = self._errands, []
        for errand, parts in zip(errands, self._passes.take(), strict=True):
            if errand.wanted:
                self._pool.put(errand.lease.pages, errand.past, parts)
        return [errand.work for errand in errands if errand.wanted]

    def look(self) -> None:
        """A pass that nobody wants any more is given up."""
        if self._errands and not self.sequences:
            self._passes.abandon()
            self._errands = []

    def wait(self, seconds: float) -> None:
        """For the pass under way, if there is one."""
        if not self.free:
            self._passes.wait(seconds)

    def close(self) -> None:
        self._passes.close()

    def check(self) -> None:
        """The law of the class holds."""
        assert not (self.free and self._errands), "errands without a pass"
        for errand in self._errands:
            if errand.wanted:
                assert errand.work.sequence.lease is errand.lease, "somebody computes for another's lease"
                assert errand.lease.filled == errand.past, "what is computed away was computed here as well"
                assert errand.lease.room() >= errand.past + errand.work.count, "what comes back has no pages"


def _shared(weights: Mapping[Sequence, float]) -> dict[Sequence, int]:
    """Of a piece the tokens of each, in the order given; what short ones leave over goes to the longer."""
    counts, left, total = dict.fromkeys(weights, 0), PIECE, sum(weights.values())
    for sequence in sorted(weights, key=lambda s: s.alike() / weights[s]):
        counts[sequence] = min(sequence.alike(), left, max(1, round(left * weights[sequence] / total)))
        left -= counts[sequence]
        total -= weights[sequence]
    return {sequence: count for sequence, count in counts.items() if count}
