"""Samples: short bursts of passes, each timed between two readings of the memory's rate, and the line they come to.

On a shared machine the memory's rate may double or halve within seconds: a burst is judged by the readings beside it.

    read  burst  read  burst  read
    |--- pair ---|
                 |--- pair ---|
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, mode

import msgspec

from engine.bench_report import Line, Machine
from engine.roofline import Work, bound

STEADY = 1.25  # of the faster of a burst's two readings to the slower; beyond, nobody knows at which rate it ran


@dataclass(frozen=True)
class Burst:
    """Passes that are timed as one."""

    tokens: int
    work: Work
    run: Callable[[], None]


@dataclass(frozen=True)
class Timed:
    """A burst that ran, and the bytes a second that the machine read before and after it, where they are measured."""

    burst: Burst
    seconds: float
    reads: tuple[float, ...]

    @property
    def rate(self) -> float:
        return self.burst.tokens / self.seconds

    @property
    def read(self) -> float | None:
        return sum(self.reads) / len(self.reads) if self.reads else None


@dataclass
class Measurement:
    """Something to measure: the bursts of one sample, in their order, and what came of them in all samples so far."""

    name: str
    sequences: int
    context: int
    bursts: Sequence[Burst]
    times: int  # samples
    timed: list[Timed] = field(default_factory=list)

    def sample(self, read: Callable[[], list[float]], clock: Callable[[], float] = time.perf_counter) -> None:
        """`read` gives one rate, or none where the machine's are not measured."""
        before = read()
        for burst in self.bursts:
            began = clock()
            burst.run()
            seconds = clock() - began
            after = read()
            self.timed.append(Timed(burst, seconds, (*before, *after)))
            before = after


@dataclass(frozen=True)
class Judged:
    """A burst beside its roofline, in tokens a second."""

    roofline: float
    share: float
    limit: str


def line_of(measurement: Measurement, machine: Machine) -> Line:
    """Medians over the bursts, and of the shares those over the steady ones."""
    rates = [timed.rate for timed in measurement.timed]
    steady = [timed for timed in measurement.timed if _steady(timed, machine)]
    line = Line(
        name=measurement.name,
        sequences=measurement.sequences,
        context=measurement.context,
        tokens=sum(burst.tokens for burst in measurement.bursts),
        bursts=len(rates),
        unsteady=len(rates) - len(steady),
        median=median(rates),
        best=max(rates),
        worst=min(rates),
    )
    judged = {
        "": [_judged(timed, timed.read, machine) for timed in steady or measurement.timed],
        "published_": [_judged(timed, machine.published_bandwidth, machine) for timed in measurement.timed],
    }
    for name, found in judged.items():
        known = [one for one in found if one is not None]
        if known:
            changed = {
                f"{name}roofline": median(one.roofline for one in known),
                f"{name}share": median(one.share for one in known),
                f"{name}limit": mode(one.limit for one in known),
            }
            line = msgspec.structs.replace(line, **changed)
    return line


def _steady(timed: Timed, machine: Machine) -> bool:
    """Its roofline is known: the readings agree, or arithmetic is the limit at either."""
    if not timed.reads or max(timed.reads) <= STEADY * min(timed.reads):
        return True
    limit = bound(timed.burst.work, min(timed.reads), machine.int8_peak, machine.fp32_peak)
    return limit is not None and limit.name == "arithmetic"


def _judged(timed: Timed, read: float | None, machine: Machine) -> Judged | None:
    limit = bound(timed.burst.work, read, machine.int8_peak, machine.fp32_peak)
    if limit is None:
        return None
    roofline = timed.burst.tokens / limit.seconds
    return Judged(roofline, timed.rate / roofline, limit.name)
