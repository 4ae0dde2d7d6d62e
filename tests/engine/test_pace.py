"""Laws of the pace: passes with prompts take about as long as they may, on a machine of any speed."""

from hypothesis import given
from hypothesis import strategies as st

from engine.pace import ALONE, STRETCH, Pace


class Machine:
    """Seconds of a pass: so many for the weights, so many for each cost of prompts."""

    def __init__(self, decode: float, unit: float) -> None:
        self.decode = decode
        self.unit = unit

    def run(self, pace: Pace, answers: int, past: int) -> float:
        cost = pace.cost(past, pace.tokens(past, pace.budget(answers)))
        seconds = (self.decode if answers else 0) + self.unit * cost
        pace.learn(cost, seconds)
        return seconds


@given(decode=st.floats(1e-3, 1.0), unit=st.floats(1e-5, 1e-2), past=st.integers(0, 30_000))
def test_who_decodes_beside_a_prompt_waits_a_bounded_multiple(decode: float, unit: float, past: int) -> None:
    pace = Pace(steep=3e-4)
    machine = Machine(decode, unit)
    for _ in range(5):
        pace.learn(0, decode)
    for _ in range(20):
        seconds = machine.run(pace, 4, past)
    least = decode + unit * pace.cost(past, 1)
    assert seconds <= max(1.1 * STRETCH * decode, least + 1e-9)


@given(unit=st.floats(1e-5, 1e-2))
def test_a_prompt_alone_is_cut_so_that_a_newcomer_waits_about_a_second(unit: float) -> None:
    pace = Pace(steep=0.0)
    machine = Machine(0.0, unit)
    for _ in range(20):
        seconds = machine.run(pace, 0, 0)
    assert seconds <= max(1.1 * ALONE, unit)


@given(past=st.integers(0, 100_000), cost=st.floats(1, 1000))
def test_tokens_of_a_cost_cost_about_that(past: int, cost: float) -> None:
    pace = Pace(steep=3e-4)
    tokens = pace.tokens(past, cost)
    assert tokens >= 1
    if tokens > 1:
        assert pace.cost(past, tokens) <= cost * (1 + 3e-4 * 1000)
