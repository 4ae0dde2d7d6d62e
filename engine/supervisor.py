"""Which candidate computes an operation: one that throws, differs, varies or is not clearly faster is out.

Nobody is trusted, whoever wrote the kernel: on a machine that was not seen before each candidate is compiled, compared
with float64, and timed beside the others. A candidate that never returns is beyond this: it stalls the first load. But
it is noted before it is tried, so whoever then stops the process finds it out at the next.
"""

import logging
import time

from engine.candidates import Candidate, Operation, T
from engine.judging import Clock, Fault, fault_of, judged
from engine.verdicts import Fate, Finding, Verdict, VerdictFile

_log = logging.getLogger(__name__)


class Supervisor:
    """Finds an operation's candidate once for each machine and source, and checks it again in each process."""

    def __init__(self, file: VerdictFile, clock: Clock = time.perf_counter, *, retune: bool = False) -> None:
        self._file = file
        self._clock = clock
        self._settled: dict[str, Finding] = {}
        if retune:
            file.forget()

    def choice(self, operation: Operation[T]) -> Candidate[T]:
        if operation.key not in self._settled:
            self._settled[operation.key] = self._found(operation)
        chosen = self._settled[operation.key].chosen
        return next(c for c in operation.candidates if c.name == chosen)

    def finding(self, operation: Operation[T]) -> Finding:
        self.choice(operation)
        return self._settled[operation.key]

    def _found(self, operation: Operation[T]) -> Finding:
        try:
            return self._spot_checked(operation, self._known(operation))
        except Exception as thrown:  # trials that cannot be made are no reason not to serve
            _log.exception(
                "%s: %s computes, for candidates cannot be tried", operation.key, operation.candidates[0].name
            )
            return _untried(operation, f"{type(thrown).__name__}: {thrown}")

    def _known(self, operation: Operation[T]) -> Finding:
        known = self._file.read()
        finding = known.findings.get(operation.key)
        if finding is not None and finding.sources == sources(operation):
            return finding
        _log.info("%s: trying kernels on %s", operation.key, self._file.machine.chip)
        finding = self._settle(operation, known.trying.get(operation.key))
        self._file.found(operation.key, finding)
        return finding

    def _settle(self, operation: Operation[T], lost: str | None) -> Finding:
        """`lost` is the candidate with which a process ended."""
        faults: dict[str, Fault] = {}
        for i, candidate in enumerate(operation.candidates):
            if i and candidate.name == lost:
                faults[lost] = Fault(Fate.LOST, "puna kernels --retune tries it again")
                continue
            self._file.tries(operation.key, candidate.name)
            fault = fault_of(candidate, operation.trials())
            if fault:
                faults[candidate.name] = fault
                _log.warning("%s: %s %s: %s", operation.key, candidate.name, fault.fate.value, fault.reason)
        return judged(operation, faults, self._clock, lambda name: self._file.tries(operation.key, name))

    def _spot_checked(self, operation: Operation[T], finding: Finding) -> Finding:
        """The baseline is what remains, so there is nothing to check of it."""
        if finding.chosen == operation.candidates[0].name:
            return finding
        chosen = next(c for c in operation.candidates if c.name == finding.chosen)
        fault = fault_of(chosen, operation.spot())
        if fault is None:
            return finding
        _log.error("%s: %s is out: %s (%s)", operation.key, chosen.name, fault.fate.value, fault.reason)
        finding = finding.without_chosen(fault.fate, f"at a load: {fault.reason}")
        self._file.found(operation.key, finding)
        return finding


def sources(operation: Operation[T]) -> dict[str, str]:
    return {candidate.name: candidate.source for candidate in operation.candidates}


def _untried(operation: Operation[T], reason: str) -> Finding:
    first, *others = operation.candidates
    out = [Verdict(candidate.name, candidate.source, Fate.UNTRIED, reason) for candidate in others]
    return Finding((Verdict(first.name, first.source, Fate.CHOSEN), *out))
