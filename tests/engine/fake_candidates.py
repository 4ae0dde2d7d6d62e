"""Candidates that compute nothing: what they answer, throw and cost is told them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.candidates import Doubles, Floats, Operation

ROWS = 5


class Clock:
    """Time passes only where a candidate spends it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class FakeTrial:
    """Every row's answer is its number; `first` says where a lone row comes from."""

    name: str
    rows: int = ROWS
    first: int = 0

    @property
    def exact(self) -> Doubles:
        return np.arange(self.first, self.first + self.rows, dtype=np.float64)[:, None]

    def alone(self, row: int) -> "FakeTrial":
        return FakeTrial(f"{self.name}, alone", 1, self.first + row)


def _no_cost() -> Iterator[float]:
    while True:
        yield 1.0


@dataclass
class Fake:
    """`costs` are the seconds of its bursts, one after the other."""

    name: str
    clock: Clock
    error: float = 0.0  # of its bound
    source: str = "text"
    alone_adds: float = 0.0
    keeps_rows: bool = True
    broken: bool = False
    throws: str = ""  # the name of a trial
    throws_timed: bool = False
    costs: Iterator[float] = field(default_factory=_no_cost)
    asked: list[str] = field(default_factory=list)

    def compile(self, trial: FakeTrial) -> None:
        self.asked.append(trial.name)
        if self.broken:
            raise RuntimeError("unknown type half5\nand more")

    def result(self, trial: FakeTrial) -> Floats:
        if trial.name == self.throws:
            raise ValueError("no such page")
        found = trial.exact.astype(np.float32) + np.float32(self.error * BOUND)
        return found + np.float32(self.alone_adds * (trial.rows == 1))

    def bound(self, trial: FakeTrial) -> Doubles:
        return np.full_like(trial.exact, BOUND)

    def promises(self, trial: FakeTrial) -> bool:
        return self.keeps_rows

    def burst(self, trial: FakeTrial, times: int) -> None:
        if self.throws_timed:
            raise MemoryError("no room")
        self.clock.now += next(self.costs) * times


BOUND = 2.0**-10  # exact in float32 beside the small numbers of the trials


def operation(candidates: Sequence[Fake], key: str = "sum") -> Operation[FakeTrial]:
    return Operation(
        key,
        candidates,
        lambda: [FakeTrial("small"), FakeTrial("large"), FakeTrial("one", 1)],
        lambda: [FakeTrial("step"), FakeTrial("prompt")],
        lambda: [FakeTrial("spot", 2)],
    )


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def flaky(seed: int, around: Callable[[np.random.Generator], float]) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    while True:
        yield around(rng)
