"""Who takes part in the next pass, with how many tokens, and who gets the pages."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator

from engine.away import Away
from engine.pace import PREFILL as MOST
from engine.pace import ROWS, Pace
from engine.sequence import Sequence
from engine.turns import ANSWER, Turns
from engine.work import Work
from kvcache.cache import PageCache
from kvcache.lease import Lease
from kvcache.pages import PAGE
from kvcache.tree import as_bytes, common

WAIT = 0.02  # seconds to wait for a further tier when there is nothing else to do
ALIKE = 8  # common tokens that are worth waiting for somebody else's pass
COLD_BESIDE_DECODE, COLD = 1, 8  # pages handed to a further tier before a pass


class Scheduler:
    """Sequences that run, in the order of their rank, and those that wait for their turn. Owner: the engine.

    Who runs keeps its rank, older than that of whoever has a turn later: when pages run out, the youngest gives its own
    back and waits. So the oldest always goes on, and everybody who had a turn comes to be the oldest; everybody who
    waits has a turn (see Turns). That tokens stay the same through all of this is law 1.

    With a CPU beside, tokens of the prompts' class are computed there, and whose are under way is not planned again.
    """

    def __init__(self, cache: PageCache, max_batch: int, pace: Pace, away: Away | None = None) -> None:
        self._cache = cache
        self._away = away
        self._max_batch = max_batch
        self._pace = pace
        self._turns = Turns()
        self._blocked: tuple[int, int] | None = None  # who waits for pages, and how many there were
        self._stuck = False
        self.running: list[Sequence] = []
        self.preempted = 0

    @property
    def busy(self) -> bool:
        return bool(self.running or self._turns)

    @property
    def waiting(self) -> list[Sequence]:
        return list(self._turns)

    def add(self, sequence: Sequence) -> None:
        self._turns.add(sequence)

    def remove(self, name: int) -> Sequence | None:
        """The sequence is forgotten and holds no page. One that is over already is no fault: news cross."""
        for sequence in self.running:
            if sequence.id == name:
                self._stop(sequence)
                self._turns.end(sequence)
                return sequence
        for sequence in self._turns:
            if sequence.id == name:
                self._turns.give_up(sequence)
                return sequence
        return None

    def expired(self, now: float) -> list[Sequence]:
        """Those who waited for a first turn as long as they cared to; they are forgotten."""
        gone = [s for s in self._turns if s.asker.patience is not None and now - s.came >= s.asker.patience]
        gone = [s for s in gone if s.turned is None]
        for sequence in gone:
            self._turns.give_up(sequence)
        return gone

    def plan(self, now: float) -> list[Work]:
        """Work for running sequences; empty if there are none, or all wait for pages from a further tier."""
        answering = any(s.todo == 1 for s in self.running)
        self._cache.settle(WAIT if self._stuck else 0, COLD_BESIDE_DECODE if answering else COLD)
        self._admit(now)
        work = list(self._with_pages([*self._answers(), *self._prompts()]))
        self._stuck = not work and bool(self.running)
        return work

    def next_after(self, under_way: Iterable[Work]) -> list[tuple[Work, int]] | None:
        """The works of the next pass, each with how many of its sequence's tokens are under way; it has pages for all.

        It stands if nobody comes or goes until then. None where only `plan` can say: several prompts divide a pass, and
        one that has a page whole may find the next.
        """
        ahead = {work.sequence: work.count for work in under_way}
        here = [s for s in self.running if not self._elsewhere(s)]
        if self._turns or not here or any(s not in ahead for s in here):
            return None
        prompts = [s for s in here if s.left(ahead[s]) > 1]
        if len(prompts) > 1 or any(self._away is not None or _ends_page(s, ahead[s]) for s in prompts):
            return None
        works = [Work(s, 1) for s in here if s not in prompts]
        for s in prompts:
            budget = self._pace.budget(s.computed + ahead[s], len(works))
            count = _filling_strips(self._within(s, budget, MOST, ahead[s]), s.alike(ahead[s]), len(works))
            works += [Work(s, count)] if budget > 0 else []
        ends = {work.sequence: work.sequence.computed + ahead[work.sequence] + work.count for work in works}
        if sum(self._cache.missing(_lease(s), end) for s, end in ends.items()) > self._cache.available:
            return None
        for s, end in ends.items():
            self._cache.grow(_lease(s), end)
        return [(work, ahead[work.sequence]) for work in works]

    def accept(self, work: Work) -> None:
        """The work was computed."""
        s, lease = work.sequence, _lease(work.sequence)
        past = lease.filled
        s.worked += max(0, min(past + work.count, s.prompt) - past)
        self._cache.fill(lease, s.keys, past + work.count)

    def answered(self, sequence: Sequence) -> None:
        """It has a token more."""
        self._turns.charge(sequence, ANSWER)

    def check(self) -> None:
        """The laws of the scheduler, its sequences and the cache hold together."""
        self._cache.check()
        if self._away is not None:
            self._away.check()
        assert all(s.lease is not None and s.lease.open for s in self.running), "a sequence runs without a lease"
        assert all(s.lease is None for s in self._turns), "a waiting sequence holds something"
        assert len(self.running) <= self._max_batch, "more sequences run than a pass has room for"
        assert self.running == sorted(self.running, key=_rank), "ranks are out of order"

    def _admit(self, now: float) -> None:
        """Whose turn it is runs, as long as there is room for its prompt beside what the running ones still need."""
        while (sequence := self._turns.next()) is not None and self._has_slot(sequence):
            if self._blocked == (sequence.id, self._cache.available):
                return
            lease = self._cache.open(sequence.asker.salt)
            self._cache.find(lease, sequence.keys)
            if self._cache.missing(lease, len(sequence.tokens)) + self._promised() > self._cache.available:
                self._cache.close(lease)
                self._blocked = (sequence.id, self._cache.available)
                return
            self._start(sequence, lease, now)

    def _has_slot(self, sequence: Sequence) -> bool:
        """A pass has room for it, if need be because a flow that has several turns at once gives one back."""
        if len(self.running) < self._max_batch:
            return True
        if self._turns.flow(sequence).running:
            return False
        for other in reversed(self.running):
            if self._turns.flow(other).running > 1:
                self._put_back(other)
                return True
        return False

    def _start(self, sequence: Sequence, lease: Lease, now: float) -> None:
        self._turns.take(sequence)
        sequence.lease = lease
        if sequence.turned is None:
            sequence.turned = now
            sequence.rank = self._turns.flow(sequence).served
            self._turns.charge(sequence, self._pace.cost(lease.filled, sequence.todo))
        insort(self.running, sequence, key=_rank)

    def _elsewhere(self, sequence: Sequence) -> bool:
        """Its next tokens are the CPU's, which is at work: until that is over, nothing is to be done for it here."""
        return self._away is not None and not self._away.free and sequence.computed < sequence.border

    def _promised(self) -> int:
        """Pages that running sequences lack for what they have to compute, and one more for each."""
        return sum(self._cache.missing(_lease(s), len(s.tokens)) + 1 for s in self.running)

    def _answers(self) -> list[Work]:
        return [Work(s, 1) for s in self.running if s.todo == 1]

    def _prompts(self) -> Iterator[Work]:
        """Prompts share the pass's budget by their flows' weights, and so they do on a CPU beside."""
        prompts = [s for s in self.running if s.todo > 1]
        weights = self._weights(prompts)
        if self._away is not None:
            yield from self._away.next({s: weight for s, weight in weights.items() if s.computed < s.border})
            weights = {s: weight for s, weight in weights.items() if s.computed >= s.border}
        answering = len(self.running) - len(prompts)
        if weights:
            least = min(s.computed for s in weights)
            yield from self._shares(weights, self._pace.budget(least, answering), answering)

    def _weights(self, prompts: list[Sequence]) -> dict[Sequence, float]:
        """Those whose next tokens are to be computed. What two have in common the older computes for both.

        So the oldest of all waits for nobody, but for what a pass under way on the CPU is about to bring.
        """
        away = self._away.sequences if self._away else []
        flows = Counter(id(self._turns.flow(s)) for s in prompts)
        weights: dict[Sequence, float] = {}
        for sequence in prompts:
            if sequence in away:
                continue
            lease = _lease(sequence)
            self._cache.find(lease, sequence.keys)
            if lease.awaits:
                continue
            leader = next((other for other in (*away, *weights) if _follows(sequence, other)), sequence)
            if leader in away:
                continue
            if leader is sequence:
                self._cache.find_part(lease, sequence.keys)
            flow = self._turns.flow(sequence)  # whose weight is for all its prompts together
            weights[leader] = weights.get(leader, 0) + flow.weight / flows[id(flow)]
        return weights

    def _shares(self, weights: dict[Sequence, float], budget: float, answering: int) -> Iterator[Work]:
        """What short ones leave over goes to the longer."""
        if budget <= 0:
            return
        costs = {s: self._pace.cost(s.computed, s.todo) for s in weights}
        members, most = sorted(weights, key=lambda s: costs[s] / weights[s]), MOST
        for i, s in enumerate(members):
            share = budget * weights[s] / sum(weights[other] for other in members[i:])
            count = self._within(s, share, most)
            if len(weights) == 1:
                count = _filling_strips(count, s.alike(), answering)
            budget -= min(share, costs[s])
            most -= count
            if count > 0:
                yield Work(s, count)

    def _within(self, sequence: Sequence, cost: float, most: int, ahead: int = 0) -> int:
        """So many tokens for that cost, when those under way are computed."""
        return min(self._pace.tokens(sequence.computed + ahead, cost), sequence.alike(ahead), most)

    def _with_pages(self, works: list[Work]) -> Iterator[Work]:
        """The works for which there are pages, the oldest first; the youngest give theirs back."""
        for work in sorted(works, key=lambda work: _rank(work.sequence)):
            sequence, count = work.sequence, work.count
            if sequence.lease is None:
                continue  # it was put back
            while self._lacks(sequence, count) and self.running[-1] is not sequence:
                self._put_back(self.running[-1])
            lease = _lease(sequence)
            if self._lacks(sequence, count):
                room = (len(lease.pages) + self._cache.available) * PAGE - lease.filled
                count = min(count, room)
            if count > 0:
                self._cache.grow(lease, lease.filled + count)
                yield Work(sequence, count)

    def _lacks(self, sequence: Sequence, count: int) -> bool:
        lease = _lease(sequence)
        return self._cache.missing(lease, lease.filled + count) > self._cache.available

    def _put_back(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self._turns.put_back(sequence)
        self.preempted += 1

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._cache.close(_lease(sequence))
        sequence.lease = None
        self._blocked = None


def _filling_strips(count: int, alike: int, answering: int) -> int:
    """All tokens, or so many or fewer, but half at least: rows of theirs and of answers that begin no strip in vain."""
    rows = count + answering
    strip = ROWS if rows > 2 * ROWS else ROWS // 2
    fewer = rows // strip * strip - answering
    return fewer if count < alike and 2 * fewer >= count else count


def _ends_page(sequence: Sequence, ahead: int) -> bool:
    """The tokens under way make its page whole."""
    return (sequence.computed + ahead) // PAGE > _lease(sequence).depth


def _follows(sequence: Sequence, leader: Sequence) -> bool:
    """What it lacks next the leader is about to compute: it waits, and shares the page."""
    mine, lead = _lease(sequence), _lease(leader)
    if mine.node is not lead.node:
        return False
    start = mine.depth * PAGE
    wanted = as_bytes(sequence.keys[start : min(start + PAGE, len(sequence.keys) - 1)])
    alike = common(wanted, as_bytes(leader.keys[start : start + PAGE]))
    return alike > mine.filled - start and (alike * 4 == len(wanted) or alike >= lead.filled - start + ALIKE)


def _lease(sequence: Sequence) -> Lease:
    assert sequence.lease is not None, "it runs"
    return sequence.lease


def _rank(sequence: Sequence) -> tuple[float, float, int]:
    assert sequence.rank is not None, "it had a turn"
    return sequence.rank, sequence.came, sequence.id
