"""Laws of samples, with a clock and a memory that are made up: a burst is judged by the readings beside it."""

from collections.abc import Sequence

import pytest

from engine.bench_report import Line, Machine
from engine.bench_samples import Burst, Measurement, line_of
from engine.roofline import Work

ARITHMETIC = Machine(
    read_median=None, read_best=None, int8_peak=100.0, fp32_peak=1.0, chip=None, published_bandwidth=None
)
TOKENS, WORK = 4, Work(nbytes=400, int8=0, fp32=0)  # of a burst


class Room:
    """A machine in which bursts take the seconds that are given, readings of memory find the rates that are given."""

    def __init__(self, seconds: Sequence[float], rates: Sequence[float]) -> None:
        self.now = 0.0
        self.happened: list[str] = []
        self._seconds, self._rates = iter(seconds), iter(rates)

    def clock(self) -> float:
        return self.now

    def read(self) -> list[float]:
        self.now += 1000  # what a reading takes is no part of a burst
        self.happened.append("read")
        return [next(self._rates)]

    def burst(self) -> None:
        self.now += next(self._seconds)
        self.happened.append("burst")


def sampled(seconds: Sequence[float], rates: Sequence[float], work: Work = WORK) -> Measurement:
    room = Room(seconds, rates)
    measurement = Measurement("decode", 1, 128, [Burst(TOKENS, work, room.burst)] * len(seconds), times=1)
    measurement.sample(room.read, room.clock)
    assert room.happened == ["read"] + ["burst", "read"] * len(seconds)
    return measurement


def line(seconds: Sequence[float], rates: Sequence[float], work: Work = WORK) -> Line:
    return line_of(sampled(seconds, rates, work), ARITHMETIC)


def test_a_reading_stands_between_any_two_bursts_and_belongs_to_both() -> None:
    measurement = sampled([1, 2], [10, 11, 12])
    assert [timed.seconds for timed in measurement.timed] == [1, 2]
    assert [timed.reads for timed in measurement.timed] == [(10, 11), (11, 12)]


def test_samples_add_up() -> None:
    room = Room([1, 1, 1, 1], [10] * 6)
    measurement = Measurement("decode", 1, 128, [Burst(TOKENS, WORK, room.burst)] * 2, times=2)
    for _ in range(measurement.times):
        measurement.sample(room.read, room.clock)
    assert room.happened == ["read", "burst", "read", "burst", "read"] * 2
    found = line_of(measurement, ARITHMETIC)
    assert (found.bursts, found.tokens) == (4, 2 * TOKENS)


def test_a_roofline_comes_from_the_mean_of_the_two_readings() -> None:
    found = line([10], [50, 60])
    assert found.limit == "memory"
    assert found.roofline == pytest.approx(0.55)
    assert found.median == pytest.approx(0.4)
    assert found.share == pytest.approx(0.4 / 0.55)


def test_a_memory_that_changes_its_rate_between_bursts_leaves_the_share_as_it_is() -> None:
    """Bursts at 80 % of whatever memory gives; at the one flip nobody knows, so that burst is no part of the share."""
    slow, fast = 400 / 35 / 0.8, 400 / 65 / 0.8
    found = line([slow, slow, 9, fast, fast, fast], [35, 35, 35, 65, 65, 65, 65])
    assert found.share == pytest.approx(0.8)
    assert (found.bursts, found.unsteady) == (6, 1)
    assert found.roofline == pytest.approx(0.65)


def test_rates_are_those_of_all_bursts() -> None:
    found = line([4, 2, 1], [10, 20, 20, 20])
    assert (found.worst, found.median, found.best) == (1, 2, 4)
    assert found.unsteady == 1


@pytest.mark.parametrize(("after", "unsteady"), [(125, 0), (126, 1), (80, 0), (79, 1)])
def test_readings_agree_within_a_quarter(after: float, unsteady: int) -> None:
    assert line([1], [100, after]).unsteady == unsteady


def test_where_no_burst_is_steady_all_count() -> None:
    found = line([4, 8], [50, 100, 50])
    assert (found.bursts, found.unsteady) == (2, 2)
    assert found.share == pytest.approx((1 / 0.75 + 0.5 / 0.75) / 2)


def test_memory_does_not_matter_where_arithmetic_is_the_limit_at_either_reading() -> None:
    work = Work(400, 2000, 0)  # 20 seconds of arithmetic; of memory 16 at 25 bytes a second, 40 at 10
    found = line([40], [25, 100], work)
    assert (found.unsteady, found.limit) == (0, "arithmetic")
    assert found.share == pytest.approx(0.5)
    assert line([40], [10, 100], work).unsteady == 1


def test_without_readings_there_is_a_rate_and_the_published_roofline_alone() -> None:
    room = Room([4], [])
    measurement = Measurement("decode", 1, 128, [Burst(TOKENS, WORK, room.burst)], times=1)
    measurement.sample(list, room.clock)
    machine = Machine(
        read_median=None, read_best=None, int8_peak=None, fp32_peak=None, chip="Apple M4", published_bandwidth=200.0
    )
    found = line_of(measurement, machine)
    assert (found.median, found.roofline, found.share, found.unsteady) == (1, None, None, 0)
    assert (found.published_roofline, found.published_share, found.published_limit) == (2, 0.5, "memory")
