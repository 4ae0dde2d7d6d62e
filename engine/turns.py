"""Whose turn it is: fair shares of the machine for clients, more for some tiers than for others, none for nobody."""

from collections import OrderedDict, deque
from collections.abc import Iterator

from engine.messages import Tier
from engine.sequence import Sequence

WEIGHTS: dict[Tier, float] = {"flex": 1, "default": 4, "priority": 16}
ANSWER = 2  # what an answer's token costs, a prompt's costing 1
_REMEMBERED = 256  # flows that wait for nothing, whose service is not forgotten


class Flow:
    """The requests of one client in one tier: those that wait, in order of arrival, and how many run."""

    def __init__(self, tier: Tier) -> None:
        self.weight = WEIGHTS[tier]
        self.served = 0.0  # tokens' cost over weight
        self.waiting: deque[Sequence] = deque()
        self.running = 0

    @property
    def active(self) -> bool:
        return bool(self.waiting or self.running)


class Turns:
    """Sequences that wait for their turn. Owner: the scheduler.

    The weighted virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): the
    flow that was served least, by its weight, is next; a flow that comes back from idleness starts at the least of the
    active ones, so that it has no claim on the past. A prompt is charged with its first turn, an answer as it grows.
    Between two turns of a flow that has somebody waiting, another flow is served no more than its weight's part and one
    request over: nobody starves, whatever tiers the others are in.
    """

    def __init__(self) -> None:
        self._flows: OrderedDict[tuple[str, Tier], Flow] = OrderedDict()

    def __bool__(self) -> bool:
        return any(flow.waiting for flow in self._flows.values())

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, in no order between flows."""
        for flow in self._flows.values():
            yield from flow.waiting

    def flow(self, sequence: Sequence) -> Flow:
        return self._flows[sequence.asker.client, sequence.asker.tier]

    def add(self, sequence: Sequence) -> None:
        """The sequence came."""
        name = (sequence.asker.client, sequence.asker.tier)
        flow = self._flows.setdefault(name, Flow(sequence.asker.tier))
        self._flows.move_to_end(name)
        if not flow.active:
            least = min((other.served for other in self._flows.values() if other.active), default=0.0)
            flow.served = max(flow.served, least)
        flow.waiting.append(sequence)
        self._forget()

    def next(self) -> Sequence | None:
        """Who is to run next; it waits until it is `taken`."""
        waiting = [flow for flow in self._flows.values() if flow.waiting]
        if not waiting:
            return None
        return min(waiting, key=lambda flow: (flow.served, flow.waiting[0].came, flow.waiting[0].id)).waiting[0]

    def take(self, sequence: Sequence) -> None:
        """It runs."""
        flow = self.flow(sequence)
        assert flow.waiting[0] is sequence, "a turn out of order"
        flow.waiting.popleft()
        flow.running += 1

    def put_back(self, sequence: Sequence) -> None:
        """It runs no more, and is the next of its flow."""
        flow = self.flow(sequence)
        flow.running -= 1
        flow.waiting.appendleft(sequence)

    def end(self, sequence: Sequence) -> None:
        """It ran, and is over."""
        self.flow(sequence).running -= 1

    def give_up(self, sequence: Sequence) -> None:
        """It waited, and is over."""
        self.flow(sequence).waiting.remove(sequence)

    def charge(self, sequence: Sequence, cost: float) -> None:
        flow = self.flow(sequence)
        flow.served += cost / flow.weight

    def _forget(self) -> None:
        for name in list(self._flows)[: max(0, len(self._flows) - _REMEMBERED)]:
            if not self._flows[name].active:
                del self._flows[name]
