"""The verdict on candidates: which are right, and which of those is fastest. Knows no device."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from engine.candidates import Candidate, Doubles, Operation, T, Trial
from engine.verdicts import Fate, Finding, Verdict

Clock = Callable[[], float]  # seconds

ROUNDS = 15
CLEARLY = 0.95  # of the incumbent's time, by the median of rounds
WINS = 12  # of the rounds; of two equals one wins so many in 2 of 100 cases
HOPELESS = 2.0  # times as slow, in each of the first rounds, and a candidate is timed no more
FIRST = 3
BURST = 0.02  # seconds of work that one reading of the clock spans
MOST_IN_A_BURST = 512
LEAST = 1e-9  # seconds; no clock tells less


@dataclass(frozen=True)
class Fault:
    fate: Fate
    reason: str


def fault_of(candidate: Candidate[T], trials: Iterable[T]) -> Fault | None:
    """The first that is found wrong. Whatever a candidate throws, a kernel that does not work is all it can be."""
    for trial in trials:
        try:
            candidate.compile(trial)
        except Exception as thrown:
            return Fault(Fate.UNCOMPILED, _said(trial, thrown))
        try:
            fault = _difference(candidate, trial) or _variance(candidate, trial)
        except Exception as thrown:
            return Fault(Fate.THROWS, _said(trial, thrown))
        if fault:
            return fault
    return None


def _said(trial: Trial, thrown: Exception) -> str:
    lines = str(thrown).strip().splitlines() or [""]
    return f"{trial.name}: {type(thrown).__name__}: {lines[0][:200]}"


def _difference(candidate: Candidate[T], trial: T) -> Fault | None:
    got, exact = candidate.result(trial), trial.exact
    if got.shape != exact.shape:
        return Fault(Fate.DIFFERS, f"{trial.name}: shape {got.shape}, not {exact.shape}")
    with np.errstate(invalid="ignore"):
        share = np.abs(got - exact) / candidate.bound(trial)
    wrong = ~(share <= 1)  # NaN is wrong
    if not wrong.any():
        return None
    worst = np.nanmax(share) if np.isfinite(share).any() else np.nan
    return Fault(Fate.DIFFERS, f"{trial.name}: {wrong.sum()} of {wrong.size} numbers off, by {worst:.3g} of the bound")


def _variance(candidate: Candidate[T], trial: T) -> Fault | None:
    """The first row, the last and one between stand for all."""
    if not candidate.promises(trial):
        return None
    together = candidate.result(trial)
    last = len(together) - 1
    for row in sorted({0, last // 2, last}):
        one = trial.alone(row)
        candidate.compile(one)
        if candidate.result(one)[0].tobytes() != together[row].tobytes():
            return Fault(Fate.VARIES, f"{trial.name}: row {row} of {len(together)}")
    return None


def judged(operation: Operation[T], faults: Mapping[str, Fault], clock: Clock, tries: Callable[[str], None]) -> Finding:
    """Of the right candidates the first stays, unless another is clearly faster. If nobody is right, the baseline."""
    right = [c for c in operation.candidates if c.name not in faults]
    race = Race(operation.timed(), clock, tries) if len(right) > 1 else None
    if race:
        race.run(right)
        faults = {**faults, **race.faults}
        right = [c for c in right if c.name not in faults]
    samples = race.samples if race else {}
    chosen = fastest(samples) if samples else (*right, operation.candidates[0])[0].name
    verdicts = []
    for candidate in operation.candidates:
        fault = faults.get(candidate.name)
        if candidate.name == chosen:
            fate, reason = Fate.CHOSEN, f"nobody is right: {fault.fate.value}, {fault.reason}" if fault else ""
        elif fault:
            fate, reason = fault.fate, fault.reason
        else:
            fate, reason = Fate.SLOWER, _against(samples, chosen, candidate.name)
        seconds = race.medians(candidate.name) if race else {}
        verdicts.append(Verdict(candidate.name, candidate.source, fate, reason, seconds))
    return Finding(tuple(verdicts))


class Race(Generic[T]):
    """Right candidates timed in interleaved rounds, each round begun by another, so that what slows one slows all."""

    def __init__(self, trials: Sequence[T], clock: Clock, tries: Callable[[str], None]) -> None:
        assert trials, "somebody wants to know how long something takes"
        self.faults: dict[str, Fault] = {}
        self.samples: dict[str, Doubles] = {}  # seconds (rounds, trials) of one computation
        self._trials, self._clock, self._tries = trials, clock, tries
        self._bursts = [1] * len(trials)

    def run(self, right: Sequence[Candidate[T]]) -> None:
        runners = self._warm(right)
        self.samples = {c.name: np.empty((0, len(self._trials))) for c in runners}
        for number in range(ROUNDS):
            turn = number % max(1, len(runners))
            for candidate in runners[turn:] + runners[:turn]:
                seconds = self._lap(candidate)
                if seconds is not None:
                    self.samples[candidate.name] = np.vstack([self.samples[candidate.name], seconds])
            runners = [c for c in runners if c.name not in self.faults and not self._hopeless(c.name)]
        self.samples = {name: found for name, found in self.samples.items() if name not in self.faults}

    def medians(self, name: str) -> dict[str, float]:
        if name not in self.samples:
            return {}
        return {t.name: float(s) for t, s in zip(self._trials, np.median(self.samples[name], 0), strict=True)}

    def _warm(self, right: Sequence[Candidate[T]]) -> list[Candidate[T]]:
        """Who still runs after everything was compiled; the first of them says how much a burst is."""
        runners = [c for c in right if self._lap(c) is not None]
        once = self._lap(runners[0]) if runners else None
        if once is not None:
            self._bursts = [min(MOST_IN_A_BURST, math.ceil(BURST / seconds)) for seconds in once]
        return runners

    def _lap(self, candidate: Candidate[T]) -> list[float] | None:
        """Of each trial; None and a fault if it throws."""
        if candidate.name in self.faults:
            return None
        self._tries(candidate.name)
        found = []
        for trial, times in zip(self._trials, self._bursts, strict=True):
            try:
                start = self._clock()
                candidate.burst(trial, times)
                found.append(max(self._clock() - start, LEAST) / times)
            except Exception as thrown:
                self.faults[candidate.name] = Fault(Fate.THROWS, f"timed on {_said(trial, thrown)}")
                return None
        return found

    def _hopeless(self, name: str) -> bool:
        found, first = self.samples[name], next(iter(self.samples.values()))
        return len(found) == FIRST <= len(first) and bool((_ratios(found, first[:FIRST]) > HOPELESS).all())


def fastest(samples: Mapping[str, Doubles]) -> str:
    """The first, unless another takes clearly less time by the median of rounds and wins four of five rounds."""
    chosen, least = next(iter(samples)), CLEARLY
    first = samples[chosen]
    for name, seconds in samples.items():
        if len(seconds) == len(first):
            ratios = _ratios(seconds, first)
            if np.median(ratios) < least and (ratios < 1).sum() >= WINS:
                chosen, least = name, float(np.median(ratios))
    return chosen


def _ratios(seconds: Doubles, first: Doubles) -> Doubles:
    """Of each round, the trials weighing alike: (rounds,)."""
    found: Doubles = np.exp(np.log(seconds / first).mean(1))
    return found


def _against(samples: Mapping[str, Doubles], chosen: str, name: str) -> str:
    if name not in samples:
        return "not timed"
    both = min(len(samples[name]), len(samples[chosen]))
    return f"takes {np.median(_ratios(samples[name][:both], samples[chosen][:both])):.2f} of the time of {chosen}"
