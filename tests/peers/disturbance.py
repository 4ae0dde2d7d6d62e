"""What else went on while a server was measured: the memory's rate around it, and the CPU time that others took."""

import os
import time
from pathlib import Path
from statistics import median

from engine.bench import Probe
from tests.peers.served import family

TICKS = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)  # in /proc/PID/stat after the name: of the process in user and kernel, of its dead children


class Disturbance:
    """From now on until it is told. Figures of runs that others disturbed, or unalike, are not to be compared."""

    def __init__(self) -> None:
        self._memory = memory()
        self._began, self._busy, self._own = time.monotonic(), busy(), own()

    def told(self, server: int) -> str:
        """Of the server with this process id, which is still there."""
        others = busy() - self._busy - sum(map(used, family(server))) - (own() - self._own)
        share = max(0.0, others) / (time.monotonic() - self._began) / (os.cpu_count() or 1)
        return (
            f"others took {share:.0%} of the CPUs; memory read at {self._memory:.0f} GB/s before, {memory():.0f} after"
        )


def memory() -> float:
    """GB/s. Decoding goes with it."""
    probe = Probe("cpu", None)
    return median(rate for _ in range(3) for rate in probe.read()) / 1e9


def busy() -> float:
    """Seconds that the machine's CPUs did not idle or wait, and were there for us."""
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / TICKS


def used(process: int) -> float:
    """Seconds of this process and of those of its children that are gone."""
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[_TIMES]
    return sum(map(int, times)) / TICKS


def own() -> float:
    times = os.times()
    return times.user + times.system
