"""`puna bench`: how fast this machine is, and how much of that a model gets."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec

from engine import command_buffers
from engine.bench_report import Asked, Report
from engine.messages import EngineSpec, Fault
from engine.process import error_of
from quant.errors import EngineError
from server.logs import one_line

PROGRAM = "from engine.bench import main; main()"
LONG, PROMPT, STEPS, REPEAT = 8192, 512, 16, 3
QUICK_LONG, QUICK_PROMPT, QUICK_STEPS = 1024, 128, 4


def asked_of(spec: EngineSpec, context: int | None, repeat: int | None, *, quick: bool) -> Asked:
    """`quick` takes one sample of short runs: enough to see that everything works, too few to compare."""
    if quick:
        return Asked(
            spec=spec, context=context or QUICK_LONG, repeat=repeat or 1, steps=QUICK_STEPS, prompt=QUICK_PROMPT
        )
    return Asked(spec=spec, context=context or LONG, repeat=repeat or REPEAT, steps=STEPS, prompt=PROMPT)


def bench(asked: Asked, *, json: bool) -> None:
    report = measure(asked)
    print(
        msgspec.json.format(msgspec.json.encode(report)).decode() if json else "\n".join(map(one_line, table(report)))
    )


def measure(asked: Asked) -> Report:
    """By a process of its own: weights and what may crash with them never come into this one."""
    environment = os.environ | command_buffers.environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", PROGRAM]
    question = msgspec.json.encode(asked)
    # In a group of its own: a Ctrl-C is ours to hear, and `run` then kills it.
    done = subprocess.run(
        command, input=question, stdout=subprocess.PIPE, env=environment, process_group=0, check=False
    )
    if done.returncode != 0:
        raise EngineError(f"the measuring process died (code {done.returncode})")
    answer = msgspec.json.decode(done.stdout, type=Report | Fault)
    if isinstance(answer, Fault):
        raise error_of(answer)
    return answer


def table(report: Report) -> Iterator[str]:
    """The machine first, then a line for each measurement."""
    machine = report.machine
    threads = f"{report.threads} threads" if report.threads else None
    on = ", ".join(filter(None, [report.device, report.kernels, threads]))
    yield f"{report.model}: {report.weight_bytes / 1e6:.0f} MB a token; {on}"
    if machine.read_median is not None and machine.read_best is not None:
        yield f"memory  {machine.read_median / 1e9:8.1f} GB/s read, best {machine.read_best / 1e9:.1f}"
    for name, peak in (("int8", machine.int8_peak), ("fp32", machine.fp32_peak)):
        if peak is not None:
            yield f"{name}    {peak / 1e9:8.0f} Gop/s"
    if machine.published_bandwidth is not None:
        yield f"{machine.chip}: {machine.published_bandwidth / 1e9:.0f} GB/s published"
    yield ""
    yield from _aligned([_HEAD + (_PUBLISHED if machine.published_bandwidth else ()), *_rows(report)])
    yield from unsteady(report)


def unsteady(report: Report) -> Iterator[str]:
    """A sentence after the table, where there is something to say."""
    found = [f"{line.name} {line.unsteady} of {line.bursts}" for line in report.lines if line.unsteady]
    if found:
        yield ""
        yield f"Bursts left out of the shares, as memory changed its rate beside them (unless all): {', '.join(found)}."


_HEAD = ("", "tok/s", "worst", "best", "roofline", "share", "limit")
_PUBLISHED = ("published", "share", "limit")


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    for line in report.lines:
        row = (line.name, *(f"{rate:.1f}" for rate in (line.median, line.worst, line.best)))
        row += _roofline(line.roofline, line.share, line.limit)
        if report.machine.published_bandwidth is not None:
            row += _roofline(line.published_roofline, line.published_share, line.published_limit)
        yield row


def _roofline(roofline: float | None, share: float | None, limit: str | None) -> tuple[str, str, str]:
    if roofline is None or share is None or limit is None:
        return "-", "-", "-"
    return f"{roofline:.1f}", f"{share:.0%}", limit


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
