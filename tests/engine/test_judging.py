"""Who is right and who is faster, told by candidates that are made to be this or that."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engine.candidates import Floats
from engine.judging import ROUNDS, Fault, fault_of, judged
from engine.verdicts import Fate, Finding
from tests.engine.fake_candidates import ROWS, Clock, Fake, FakeTrial, always, flaky, operation

TRIAL = [FakeTrial("only")]
COSTS = (("old", 1.0), ("new", 0.5))


def fault(**about: object) -> Fault | None:
    return fault_of(Fake("x", Clock(), **about), TRIAL)  # type: ignore[arg-type]


def verdict(candidates: list[Fake], faults: dict[str, Fault] | None = None) -> Finding:
    return judged(operation(candidates), faults or {}, candidates[0].clock, lambda name: None)


def fates(finding: Finding) -> dict[str, Fate]:
    return {v.candidate: v.fate for v in finding.verdicts}


def test_who_is_off_by_just_under_the_bound_is_right_and_by_just_over_it_is_not() -> None:
    for sign in (1, -1):
        assert fault(error=sign * 1.0) is None
        assert fault(error=sign * 0.999) is None
        found = fault(error=sign * 1.01)
        assert found is not None
        assert found.fate is Fate.DIFFERS
        assert found.reason == "only: 5 of 5 numbers off, by 1.01 of the bound"


@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_right(error: float) -> None:
    found = fault(error=error)
    assert found is not None
    assert found.fate is Fate.DIFFERS


def test_one_wrong_number_among_many_is_enough() -> None:
    class OneOff(Fake):
        def result(self, trial: FakeTrial) -> Floats:
            found = super().result(trial)
            found[-1] = np.nan
            return found

    found = fault_of(OneOff("x", Clock()), TRIAL)
    assert found is not None
    assert found.reason.startswith("only: 1 of 5 numbers off")


def test_another_shape_is_not_right() -> None:
    class Short(Fake):
        def result(self, trial: FakeTrial) -> Floats:
            return super().result(trial)[:-1]

    assert fault_of(Short("x", Clock()), TRIAL) == Fault(Fate.DIFFERS, "only: shape (4, 1), not (5, 1)")


def test_who_throws_at_compile_or_at_run_is_out_and_it_is_said_why() -> None:
    assert fault(broken=True) == Fault(Fate.UNCOMPILED, "only: RuntimeError: unknown type half5")
    assert fault(throws="only") == Fault(Fate.THROWS, "only: ValueError: no such page")
    assert fault(throws="only, alone") == Fault(Fate.THROWS, "only: ValueError: no such page")


def test_a_row_whose_bits_change_when_alone_is_out_though_within_the_bound() -> None:
    found = fault(alone_adds=2.0**-22)
    assert found == Fault(Fate.VARIES, "only: row 0 of 5")
    assert fault(alone_adds=2.0**-22, keeps_rows=False) is None  # it never said so


@pytest.mark.parametrize("row", [0, ROWS // 2, ROWS - 1])
def test_the_first_row_the_last_and_one_between_are_held_to_it(row: int) -> None:
    class OneVaries(Fake):
        def result(self, trial: FakeTrial) -> Floats:
            return super().result(trial) + np.float32(2.0**-20 * (trial.rows == 1 and trial.first == row))

    assert fault_of(OneVaries("x", Clock()), TRIAL) == Fault(Fate.VARIES, f"only: row {row} of 5")


def test_every_trial_is_asked_until_the_first_fault() -> None:
    candidate = Fake("x", Clock(), throws="large")
    assert fault_of(candidate, operation([candidate]).trials()) == Fault(Fate.THROWS, "large: ValueError: no such page")
    assert candidate.asked[-1] == "large"


def test_a_challenger_that_is_clearly_faster_is_chosen_and_one_that_is_not_is_slower() -> None:
    clock = Clock()
    for cost, chosen in ((0.5, "new"), (0.94, "new"), (0.96, "old"), (1.0, "old"), (1.5, "old"), (100.0, "old")):
        finding = verdict([Fake("old", clock), Fake("new", clock, costs=always(cost))])
        assert finding.chosen == chosen, cost
        assert sorted(f.name for f in fates(finding).values()) == ["CHOSEN", "SLOWER"]
    assert finding.verdicts[1].reason == "takes 100.00 of the time of old"


def test_the_fastest_of_several_challengers_is_chosen() -> None:
    clock = Clock()
    costs = {"old": 1.0, "a": 0.8, "b": 0.6, "c": 0.7}
    finding = verdict([Fake(name, clock, costs=always(cost)) for name, cost in costs.items()])
    assert finding.chosen == "b"
    assert finding.verdicts[1].seconds == pytest.approx({"step": 0.8, "prompt": 0.8})


def test_trials_weigh_alike_whatever_they_take() -> None:
    clock = Clock()

    class Mixed(Fake):
        def burst(self, trial: FakeTrial, times: int) -> None:
            clock.now += times * {"step": 0.5, "prompt": 110.0}[trial.name]

    class Old(Fake):
        def burst(self, trial: FakeTrial, times: int) -> None:
            clock.now += times * {"step": 1.0, "prompt": 100.0}[trial.name]

    assert verdict([Old("old", clock), Mixed("new", clock)]).chosen == "new"  # half the time and a tenth more


def test_equals_whose_times_are_flaky_hardly_ever_replace_the_first() -> None:
    def spread(rng: np.random.Generator) -> float:
        return float(np.exp(rng.standard_normal() * 0.5))  # a third or three times as long is nothing special

    chosen = []
    for seed in range(200):
        clock = Clock()
        old, new = (Fake(n, clock, costs=flaky(2 * seed + i, spread)) for i, n in enumerate(("old", "new")))
        chosen.append(verdict([old, new]).chosen)
    assert chosen.count("new") <= 10  # 1.8 of 100 by the count of rounds alone


def test_stalls_that_hit_anybody_seldom_keep_the_faster_one_out() -> None:
    def stalled(base: float) -> Callable[[np.random.Generator], float]:
        return lambda rng: base * (20.0 if rng.random() < 0.1 else 1.0)

    chosen = []
    for seed in range(100):
        clock = Clock()
        old, new = (Fake(n, clock, costs=flaky(2 * seed + (n == "new"), stalled(c))) for n, c in COSTS)
        chosen.append(verdict([old, new]).chosen)
    assert chosen.count("new") >= 70  # a stall costs it a round in six; in 82 of 100 cases no more than three


def test_a_machine_that_slows_down_meanwhile_slows_all() -> None:
    clock = Clock()

    class Drifting(Fake):
        def burst(self, trial: FakeTrial, times: int) -> None:
            clock.now += times * next(self.costs) * (1 + clock.now)

    pair = [Drifting("old", clock), Drifting("new", clock, costs=always(1.0))]
    assert verdict([*pair]).chosen == "old"


def test_every_round_is_begun_by_another() -> None:
    clock = Clock()
    begun: list[str] = []

    class Noted(Fake):
        def burst(self, trial: FakeTrial, times: int) -> None:
            super().burst(trial, times)
            begun.extend([self.name] * (trial.name == "step"))

    verdict([Noted(name, clock) for name in ("a", "b", "c")])
    laps = begun[-3 * ROUNDS :]
    assert [laps[at] for at in range(0, len(laps), 3)] == ["a", "b", "c"] * (ROUNDS // 3)
    assert all(sorted(laps[at : at + 3]) == ["a", "b", "c"] for at in range(0, len(laps), 3))


def test_a_hopeless_candidate_is_timed_only_for_some_rounds() -> None:
    clock = Clock()
    spent: list[float] = []

    class Slow(Fake):
        def burst(self, trial: FakeTrial, times: int) -> None:
            spent.append(1)
            super().burst(trial, times)

    finding = verdict([Fake("old", clock), Slow("new", clock, costs=always(50.0))])
    assert finding.chosen == "old"
    assert len(spent) < ROUNDS


def test_a_fault_while_timed_is_a_fault() -> None:
    clock = Clock()
    finding = verdict([Fake("old", clock), Fake("new", clock, throws_timed=True)])
    assert fates(finding) == {"old": Fate.CHOSEN, "new": Fate.THROWS}
    assert finding.verdicts[1].reason == "timed on step: MemoryError: no room"


class Counted(Fake):
    """Notes how often each reading of the clock has it compute."""

    def burst(self, trial: FakeTrial, times: int) -> None:
        self.asked.append(str(times))
        super().burst(trial, times)


@pytest.mark.parametrize(("cost", "times"), [(1.0, 1), (1e-3, 20), (1e-7, 512)])
def test_a_reading_of_the_clock_spans_what_it_can_tell_and_says_what_one_takes(cost: float, times: int) -> None:
    clock = Clock()
    pair = [Counted(name, clock, costs=always(cost)) for name in ("old", "new")]
    finding = verdict([*pair])
    for candidate, found in zip(pair, finding.verdicts, strict=True):
        assert candidate.asked[-1] == str(times)
        assert found.seconds == pytest.approx({"step": cost, "prompt": cost})


def test_one_candidate_alone_is_not_timed() -> None:
    lone = Counted("old", Clock())
    assert verdict([lone]).chosen == "old"
    assert lone.asked == []


def in_laps(first: float, *rest: float) -> Iterator[float]:
    """Seconds of a lap, each of two trials; from the last on always the same."""
    for seconds in (first, *rest):
        yield from (seconds, seconds)
    yield from always(rest[-1])


def test_three_lost_rounds_and_the_first_run_which_compiles_do_not_count_against_the_faster() -> None:
    """Whatever the losses cost: the median decides, and four of five rounds."""
    clock = Clock()
    lost = (0.5, 0.5, 0.5, 90.0, 90.0, 90.0, 0.5)
    finding = verdict([Fake("old", clock), Fake("new", clock, costs=in_laps(90.0, *lost))])
    assert finding.chosen == "new"
    again = verdict([Fake("old", clock), Fake("new", clock, costs=in_laps(90.0, 1.5, *lost))])
    assert again.chosen == "old"


def test_if_the_baseline_is_wrong_whoever_is_right_is_chosen_without_a_race() -> None:
    clock = Clock()
    wrong = {"old": Fault(Fate.DIFFERS, "by 2")}
    finding = verdict([Fake("old", clock), Fake("new", clock, costs=always(3.0))], wrong)
    assert fates(finding) == {"old": Fate.DIFFERS, "new": Fate.CHOSEN}


def test_if_nobody_is_right_the_baseline_computes_and_it_is_said() -> None:
    clock = Clock()
    wrong = {name: Fault(Fate.DIFFERS, "by 2") for name in ("old", "new")}
    finding = verdict([Fake("old", clock), Fake("new", clock)], wrong)
    assert finding.chosen == "old"
    assert finding.verdicts[0].reason == "nobody is right: differs, by 2"


def test_a_clock_that_stands_still_chooses_nobody_new() -> None:
    clock = Clock()
    finding = verdict([Fake("old", clock, costs=always(0.0)), Fake("new", clock, costs=always(0.0))])
    assert finding.chosen == "old"
