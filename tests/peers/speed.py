"""Speed of Puna beside llama.cpp's, on the same files, in one run in which they take turns.

Usage: python -m tests.peers.speed [FILE ...] [--formats FOLDER] --peer FOLDER [--threads N] [--repeat N] [--parts ...]
FOLDER of --peer holds llama-bench and llama-batched-bench. --formats measures the 1B shape in every format that has a
target; the files are made in that folder where they are missing (tests/peers/shapes.py). Folders of MLX, which the peer
cannot read, get Puna's shares of the roofline alone. Tables are in Markdown, rates in tokens a second: the median over
bursts (Puna) or processes (llama.cpp), and from the least to the most. "memory for each" is the median of the memory's
read rate just before and after Puna's bursts, and before and after llama.cpp's processes, in GB/s: a ratio is fair
where these are alike.
"""

import argparse
import json
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from engine.bench import BATCHES, BEFORE, Measuring
from engine.bench_report import Asked, Line, Report
from engine.messages import EngineSpec
from server.bench import unsteady
from tests.peers.shapes import GGUF_FORMATS, MLX_FORMATS, write

PROMPT, LONG, STEPS = 512, 8192, 16
FLASH = ("on", "off")
PARTS = ("prefill", "decode", "batches", "long")

Rates = Mapping[str, float]  # by the name of Puna's line


@dataclass
class Peers:
    """The peer's rates in one line, with one setting of flash attention, and the memory's beside its processes."""

    rates: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)


Seen = defaultdict[tuple[str, str], Peers]  # by line and setting of flash attention


@dataclass(frozen=True)
class Call:
    """One start of the peer, which measures these lines."""

    lines: Sequence[str]
    run: Callable[[str], Rates]  # with this setting of flash attention


class Peer:
    """llama.cpp's own benchmarks with its default batch sizes."""

    def __init__(self, folder: Path, model: Path, threads: int, context: int) -> None:
        self._folder = folder
        self._common = ["-m", str(model), "-t", str(threads), "-dev", "none"]  # its CPU, where it has a GPU too
        self.context = context

    def calls(self) -> dict[str, Call]:
        batches = [f"decode x{count}" for count in BATCHES]
        long = [f"prefill {self.context}", f"decode at {self.context}"]
        return {
            "prefill": Call([f"prefill {PROMPT}"], self._prefill),
            "decode": Call(["decode"], self._decode),
            "batches": Call(batches, self._batches),
            "long": Call(long, self._long),
        }

    def _prefill(self, flash: str) -> Rates:
        return {f"prefill {PROMPT}": self._bench(flash, "-p", str(PROMPT), "-n", "0")}

    def _decode(self, flash: str) -> Rates:
        return {"decode": self._bench(flash, "-p", "0", "-n", str(STEPS), "-d", str(BEFORE))}

    def _batches(self, flash: str) -> Rates:
        """The prompt is shared among the sequences, which costs the peer less than prompts of their own."""
        counts = ",".join(map(str, BATCHES))
        found = self._batched(flash, "-npp", str(BEFORE), "-npl", counts, "-pps", "-c", "4096")
        return {f"decode x{row['pl']}": row["speed_tg"] for row in found}

    def _long(self, flash: str) -> Rates:
        (row,) = self._batched(flash, "-npp", str(self.context), "-npl", "1", "-c", str(self.context + 2 * STEPS))
        return {f"prefill {self.context}": row["speed_pp"], f"decode at {self.context}": row["speed_tg"]}

    def _bench(self, flash: str, *options: str) -> float:
        (found,) = json.loads(self._said("llama-bench", "-fa", flash, "-r", "1", "-o", "json", *options))
        return float(found["avg_ts"])

    def _batched(self, flash: str, *options: str) -> list[dict[str, float]]:
        said = self._said("llama-batched-bench", "-fa", flash, "-ntg", str(STEPS), "--output-format", "jsonl", *options)
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def _said(self, program: str, *options: str) -> str:
        command = [str(self._folder / program), *self._common, *options]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def side_by_side(measuring: Measuring, calls: Mapping[str, Call], parts: Sequence[str], repeat: int) -> Seen:
    """Puna, peer, Puna, peer; the peer with both settings at first, and then with those that were best for a line."""
    seen: Seen = defaultdict(Peers)
    measurements = {measurement.name: measurement for measurement in measuring.measurements}
    for _ in range(repeat):
        measuring.probe.peaks()
        for part in parts:
            call = calls[part]
            for line in call.lines:
                measuring.sample(measurements[line])
            for flash in [f for f in FLASH if any(best(seen, line) in (None, f) for line in call.lines)]:
                before = measuring.probe.read()
                found = call.run(flash)
                reads = before + measuring.probe.read()
                for line, rate in found.items():
                    seen[line, flash].rates.append(rate)
                    seen[line, flash].reads += reads
    return seen


def alone(measuring: Measuring, calls: Mapping[str, Call], parts: Sequence[str], repeat: int) -> None:
    names = [line for part in parts for line in calls[part].lines]
    for _ in range(repeat):
        measuring.probe.peaks()
        for measurement in measuring.measurements:
            if measurement.name in names:
                measuring.sample(measurement)


def best(seen: Seen, line: str) -> str | None:
    """The setting that is faster for the peer; None before both were tried."""
    tried = [flash for flash in FLASH if (line, flash) in seen]
    return max(tried, key=lambda flash: median(seen[line, flash].rates)) if len(tried) == len(FLASH) else None


def table(report: Report, reads: Mapping[str, Sequence[float]], seen: Seen) -> Iterator[str]:
    """`reads` are the memory's rates beside Puna's bursts, by line."""
    yield "| | Puna | | llama.cpp | | ratio | memory for each | roofline | share of it |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for line in report.lines:
        ours = f"{line.median:.1f} | {line.worst:.1f} to {line.best:.1f}"
        roofline = f"{line.roofline or 0:.0f}, {line.limit} | {line.share or 0:.0%}"
        yield f"| {line.name} | {ours} | {_theirs(line, reads[line.name], seen)} | {roofline} |"
    yield ""
    machine = report.machine
    assert machine.read_median is not None
    assert machine.read_best is not None
    read = f"memory reads {machine.read_median / 1e9:.1f} GB/s (best {machine.read_best / 1e9:.1f})"
    peaks = f"int8 {(machine.int8_peak or 0) / 1e9:.0f} Gop/s, fp32 {(machine.fp32_peak or 0) / 1e9:.0f} Gop/s"
    yield f"In the same run: {read}, {peaks}."
    yield from unsteady(report)


def _theirs(line: Line, reads: Sequence[float], seen: Seen) -> str:
    flash = best(seen, line.name)
    if flash is None:
        return "- | - | - | -"
    peers = seen[line.name, flash]
    middle = median(peers.rates)
    spread = f"{min(peers.rates):.1f} to {max(peers.rates):.1f}, flash attention {flash}"
    memory = f"{median(reads) / 1e9:.0f}, {median(peers.reads) / 1e9:.0f}"
    return f"{middle:.1f} | {spread} | {line.median / middle:.2f} | {memory}"


def measure(path: Path, asked: argparse.Namespace) -> None:
    spec = EngineSpec(path=str(path), threads=asked.threads, device="cpu")
    measuring = Measuring(Asked(spec=spec, context=asked.context, repeat=asked.repeat, steps=STEPS, prompt=PROMPT))
    calls = Peer(asked.peer, path, asked.threads, measuring.sizes.long).calls()
    seen: Seen = defaultdict(Peers)
    if path.is_dir():
        alone(measuring, calls, asked.parts, asked.repeat)
    else:
        seen = side_by_side(measuring, calls, asked.parts, asked.repeat)
    report = measuring.report()
    print(f"\n### {path.name} ({report.model}, {report.weight_bytes / 1e6:.0f} MB a token)\n")
    print(f"{asked.threads} threads, {report.kernels}; {asked.repeat} samples of each, in turns.\n")
    reads = {
        measurement.name: [rate for timed in measurement.timed for rate in timed.reads]
        for measurement in measuring.measurements
    }
    print("\n".join(table(report, reads, seen)), flush=True)


def made(folder: Path, formats: Sequence[str]) -> list[Path]:
    paths = [folder / (f"1b-{name}.gguf" if name in GGUF_FORMATS else f"1b-{name}") for name in formats]
    for name, path in zip(formats, paths, strict=True):
        if not path.exists():
            write(name, path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--formats", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=GGUF_FORMATS + MLX_FORMATS, default=GGUF_FORMATS + MLX_FORMATS)
    parser.add_argument("--peer", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=LONG)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    files = asked.files + (made(asked.formats, asked.only) if asked.formats else [])
    print("llama.cpp with its default batch sizes; its flash attention on or off, whichever is faster in each line;")
    print("where several sequences decode at once they share their prompt in llama.cpp, and not in Puna.")
    for path in files:
        measure(path, asked)


if __name__ == "__main__":
    main()
