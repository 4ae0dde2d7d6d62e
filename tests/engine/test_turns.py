"""Laws of turns: nobody starves, and the bound holds."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.messages import Asker, Sampling, Submit, Tier
from engine.sequence import Sequence
from engine.turns import WEIGHTS, Turns

names = itertools.count()


def request(client: str, tier: Tier = "default") -> Sequence:
    return Sequence(Submit(next(names), [1], Sampling(max_tokens=1), Asker(client, tier)), context=100)


def served(turns: Turns, cost: float, *, goes_on: bool = False) -> Sequence:
    """One turn of that cost, at whose end there may be another request of the flow."""
    sequence = turns.next()
    assert sequence is not None
    turns.take(sequence)
    if goes_on:
        turns.add(request(sequence.asker.client, sequence.asker.tier))
    turns.charge(sequence, cost)
    turns.end(sequence)
    return sequence


FLOWS: list[tuple[str, Tier]] = [("a", "default"), ("b", "default"), ("a", "flex"), ("c", "priority")]


@given(costs=st.lists(st.integers(1, 1000), min_size=50, max_size=300))
@settings(max_examples=50, deadline=None)
def test_flows_that_always_have_somebody_waiting_are_served_by_their_weights(costs: list[int]) -> None:
    """The bound: between any two, what they were served over their weights differs by one request's at most."""
    turns = Turns()
    total = dict.fromkeys(FLOWS, 0.0)
    for client, tier in FLOWS:
        turns.add(request(client, tier))
    for cost in costs:
        sequence = served(turns, cost, goes_on=True)
        total[sequence.asker.client, sequence.asker.tier] += cost / WEIGHTS[sequence.asker.tier]
        for one, other in itertools.combinations(FLOWS, 2):
            assert abs(total[one] - total[other]) <= max(costs) / min(WEIGHTS[one[1]], WEIGHTS[other[1]])


def test_the_lowest_tier_has_a_turn_however_many_the_highest_sends() -> None:
    """At equal cost, one turn in as many as the weights' sum."""
    turns = Turns()
    turns.add(request("slow", "flex"))
    turns.add(request("fast", "priority"))
    taken = [served(turns, 10, goes_on=True).asker.tier for _ in range(60)]
    assert taken.count("flex") >= 3
    assert max(len(list(run)) for tier, run in itertools.groupby(taken) if tier == "priority") <= 16


def test_who_was_away_has_no_claim_on_the_past() -> None:
    turns = Turns()
    turns.add(request("busy"))
    for _ in range(100):
        turns.add(request("busy"))
        served(turns, 100)
    turns.add(request("back"))
    turns.add(request("back"))
    turns.add(request("busy"))
    clients = [served(turns, 100).asker.client for _ in range(3)]
    assert sorted(clients) == ["back", "busy", "busy"] or sorted(clients) == ["back", "back", "busy"]
    assert clients[:2] != ["back", "back"]


def test_requests_of_one_flow_keep_their_order_and_one_put_back_is_first() -> None:
    turns = Turns()
    first, second, third = request("a"), request("a"), request("a")
    for sequence in (first, second, third):
        turns.add(sequence)
    turns.take(first)
    turns.take(second)
    turns.put_back(second)
    assert list(turns) == [second, third]
    turns.give_up(second)
    assert turns.next() is third


@pytest.mark.parametrize("count", [5000])
def test_clients_who_never_come_back_are_forgotten(count: int) -> None:
    turns = Turns()
    for i in range(count):
        turns.add(request(str(i)))
        served(turns, 1)
    assert len(turns._flows) <= 300
