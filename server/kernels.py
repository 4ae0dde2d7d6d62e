"""`puna kernels`: which kernels compute on this machine's GPU, and why the others do not."""

import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from engine.kernel_report import KernelReport
from engine.verdicts import Fate, Finding, Verdict
from quant.errors import EngineError
from server.logs import one_line

PROGRAM = "from engine.metal.tuning import main; main()"


def kernels(*, retune: bool) -> None:
    for line in table(asked(retune=retune)):
        print(one_line(line))


def asked(*, retune: bool) -> KernelReport:
    """Of a process of its own: a kernel that crashes takes only that with it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", PROGRAM]
    question = b"retune" if retune else b"show"
    done = subprocess.run(
        command, input=question, stdout=subprocess.PIPE, env=environment, process_group=0, check=False
    )
    if done.returncode != 0:
        raise EngineError(
            f"the process that tries kernels died (code {done.returncode}); run `puna kernels` to see how far it came"
        )
    return msgspec.json.decode(done.stdout, type=KernelReport)


def table(report: KernelReport) -> Iterator[str]:
    if report.chip is None:
        yield "no Metal GPU here: kernels for Apple's GPUs are neither tried nor used"
        return
    yield f"{report.chip}, MLX {report.mlx}; kept in {report.path or 'no file: there is no home directory'}"
    if not report.findings:
        yield "nothing was tried yet: a model's first load does it, or `puna kernels --retune`"
    for key, finding in sorted(report.findings.items()):
        yield ""
        yield from _rows(key, finding)


def _rows(key: str, finding: Finding) -> Iterator[str]:
    """The trials above their times; of each candidate what became of it."""
    trials = list(dict.fromkeys(name for verdict in finding.verdicts for name in verdict.seconds))
    yield f"{key:34}" + "".join(f"{name:>14}" for name in trials)
    for verdict in finding.verdicts:
        times = "".join(f"{_time(verdict, name):>14}" for name in trials)
        reason = f": {verdict.reason}" if verdict.reason else ""
        mark = "*" if verdict.fate is Fate.CHOSEN else " "
        yield f"{mark} {verdict.candidate:32}{times}  {verdict.fate.value}{reason}"


def _time(verdict: Verdict, trial: str) -> str:
    seconds = verdict.seconds.get(trial)
    return "-" if seconds is None else f"{seconds * 1e6:.1f} us" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"
