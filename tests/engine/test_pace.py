"""Laws of the pace: passes with prompts take about as long as they may, on a machine of any speed."""

from hypothesis import assume, given
from hypothesis import strategies as st

from engine.pace import ALONE, ENOUGH, LEAST, PROBE, STRAIN, STRETCH, Pace


class Machine:
    """Seconds of a pass: so many for the weights, so many for each cost of prompts."""

    def __init__(self, decode: float, unit: float) -> None:
        self.decode = decode
        self.unit = unit

    def run(self, pace: Pace, answers: int, past: int) -> tuple[float, int]:
        """Seconds of a pass, and its prompt tokens."""
        budget = pace.budget(past, answers)
        tokens = pace.tokens(past, budget) if budget else 0
        cost = pace.cost(past, tokens)
        seconds = (self.decode if answers else 0) + self.unit * cost
        pace.learn(answers, cost, seconds)
        return seconds, tokens


@given(decode=st.floats(1e-3, 1.0), unit=st.floats(1e-5, 1e-2), past=st.integers(0, 30_000))
def test_who_decodes_beside_a_prompt_waits_a_bounded_multiple(decode: float, unit: float, past: int) -> None:
    pace = Pace(steep=3e-4)
    machine = Machine(decode, unit)
    for _ in range(5):
        pace.learn(4, 0, decode)
    for _ in range(3 * PROBE):
        seconds, _ = machine.run(pace, 4, past)
    least, enough = (decode + unit * pace.cost(past, count + 1) for count in (LEAST, ENOUGH))
    strained = 1.1 * (1 + STRAIN * (STRETCH - 1)) * decode
    assert seconds <= max(1.1 * STRETCH * decode, least, min(strained, enough))


@given(decode=st.floats(1e-2, 0.1), part=st.floats(0.2, 1.0), past=st.integers(10_000, 30_000))
def test_a_deep_prompt_has_few_tokens_at_once_but_never_too_few(decode: float, part: float, past: int) -> None:
    """Where there is time for a part of ENOUGH tokens, they come in so many passes only, but in every second."""
    assume(abs(part * STRAIN - 1) > 0.01)
    pace = Pace(steep=1e-3)
    machine = Machine(decode, decode * (STRETCH - 1) / pace.cost(past, ENOUGH) / part)
    for _ in range(5):
        pace.learn(4, 0, decode)
    for _ in range(PROBE):
        machine.run(pace, 4, past)
    seen = [machine.run(pace, 4, past)[1] for _ in range(40 * PROBE)]
    at_once = ENOUGH if part * STRAIN > 1 else LEAST
    assert {count for count in seen if count} == {at_once}
    share = min(max(part * ENOUGH / at_once, 0.5), 1.0)
    assert abs(sum(seen) / len(seen) - share * at_once) <= 0.1 * at_once
    assert all(seen[i] or seen[i + 1] for i in range(len(seen) - 1))


def test_what_long_was_saved_is_no_licence_for_later() -> None:
    """A part that just falls short saves more with each probe; when it shrinks, answers must feel nothing of that."""
    pace = Pace(steep=1e-3)
    past, decode = 20_000, 0.03
    machine = Machine(decode, decode * (STRETCH - 1) / pace.cost(past, ENOUGH) / 0.99)
    pace.learn(4, 0, decode)
    for _ in range(100 * PROBE):
        machine.run(pace, 4, past)
    machine.unit *= 1.4
    for _ in range(PROBE):
        machine.run(pace, 4, past)
    seen = [machine.run(pace, 4, past)[1] for _ in range(2 * PROBE)]
    assert sum(seen) / len(seen) <= 1.1 * ENOUGH * 0.99 / 1.4


@given(slower=st.floats(0.3, 4.0))
def test_a_machine_that_changes_its_speed_keeps_its_chunks(slower: float) -> None:
    """Both kinds of work become slower or faster alike, and no pass is without prompts but the probes."""
    pace = Pace(steep=0.0)
    machine = Machine(0.03, 0.002)
    for _ in range(5):
        pace.learn(4, 0, machine.decode)
    before = [machine.run(pace, 4, 0)[1] for _ in range(3 * PROBE)]
    machine.decode *= slower
    machine.unit *= slower
    after = [machine.run(pace, 4, 0)[1] for _ in range(20 * PROBE)]
    assert min(count for count in after if count) >= LEAST
    usual = sorted(before)[len(before) // 2]
    assert abs(sorted(after[-3 * PROBE :])[3 * PROBE // 2] - usual) <= 0.2 * usual


def test_one_small_pass_does_not_spoil_what_long_ones_said() -> None:
    pace = Pace(steep=0.0)
    pace.learn(0, 500, 1.0)
    before = pace.budget(0, 0)
    pace.learn(0, 4, 0.1)
    assert pace.budget(0, 0) > before / 2


@given(unit=st.floats(1e-5, 1e-2))
def test_a_prompt_alone_is_cut_so_that_a_newcomer_waits_about_a_second(unit: float) -> None:
    pace = Pace(steep=0.0)
    machine = Machine(0.0, unit)
    for _ in range(20):
        seconds, _ = machine.run(pace, 0, 0)
    assert seconds <= max(1.1 * ALONE, unit)


@given(past=st.integers(0, 100_000), tokens=st.integers(1, 512), steep=st.floats(0, 1e-2))
def test_the_cost_of_some_tokens_is_enough_for_so_many(past: int, tokens: int, steep: float) -> None:
    pace = Pace(steep)
    assert pace.tokens(past, pace.cost(past, tokens)) == tokens


@given(past=st.integers(0, 100_000), cost=st.floats(1, 1000))
def test_tokens_of_a_cost_cost_about_that(past: int, cost: float) -> None:
    pace = Pace(steep=3e-4)
    tokens = pace.tokens(past, cost)
    assert tokens >= 1
    if tokens > 1:
        assert pace.cost(past, tokens) <= cost * (1 + 3e-4 * 1000)


def test_a_probe_that_nobody_could_make_holds_no_prompt_up() -> None:
    """Answers may lack the pages that a prompt has: asked again, without a pass between, it has its part."""
    pace = Pace(steep=0.0)
    pace.learn(1, 0.0, 0.02)
    for _ in range(PROBE):
        assert pace.budget(0, 1) > 0
        pace.learn(1, 4.0, 0.04)
    assert pace.budget(0, 1) == 0
    assert pace.budget(0, 1) > 0
