"""The measuring side of `puna bench`, a process of its own: loads a model and times the passes that an engine runs."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType

import mlx.core as mx
import msgspec
import numpy as np

from engine.batch import Batch, Span
from engine.bench_report import Asked, Machine, Report
from engine.bench_samples import Burst, Measurement, line_of
from engine.child import fault_of
from engine.chips import BANDWIDTHS, chip
from engine.engine import PassOps
from engine.load import Brought, bring, start_cpu
from engine.memory import token_bytes
from engine.messages import Fault
from engine.pace import PREFILL
from engine.roofline import Stored, Weights, decode_work, prefill_work
from kvcache.pages import PAGE
from models.config import ModelConfig, config_of
from models.ops import Matrix
from models.weights import Found, Place, find
from quant.errors import NotEnoughMemory
from quant.formats import Format
from quant.gguf_file import GGUFFile
from quant.mlx_folder import MLXFolder
from quant.open import open_checkpoint

BATCHES = (8, 16)
BEFORE = 128  # tokens before those that short decoding makes
BURST = 4  # steps of decoding between two readings of the memory's rate: about a tenth of a second
BUFFER = 2**28  # bytes that the probe reads, several times a large last cache
LONG_LESS = 3  # the long prefill is measured so many times less often than the rest
LEAST = 1024  # tokens of context below which a long measurement says nothing


def main() -> None:
    """The program of the process: Asked on standard input, Report or Fault on standard output."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    try:
        answer: Report | Fault = measured(asked)
    except Exception as error:
        answer = fault_of(error)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


@dataclass(frozen=True)
class Sizes:
    """Tokens, within what the model takes."""

    prompt: int  # of the short prefill
    long: int  # of the long one, and of the context that decoding follows
    before: int  # that short decoding follows
    steps: int  # that each sequence decodes in a sample

    @classmethod
    def within(cls, most: int, asked: Asked, long: int) -> "Sizes":
        before = min(BEFORE, most // 2)
        steps = min(asked.steps, most - before)
        long = min(long, most - steps)
        return cls(prompt=min(asked.prompt, long), long=long, before=before, steps=steps)

    @property
    def context(self) -> int:
        return max(self.long, self.before) + self.steps

    @property
    def cache(self) -> int:
        return PAGE * (pages(self.context) + max(BATCHES) * pages(self.before + self.steps))


class Probe:
    """The machine's rates. Those of reading are taken beside each burst: they drift where others share the machine."""

    def __init__(self, device: str, threads: int | None) -> None:
        self.reads: list[float] = []
        self.int8: float | None = None
        self.fp32: float | None = None
        self.kernels: str | None = None
        self.threads: int | None = None
        self.on_cpu = device != "gpu"  # whose memory is another's to measure
        self.chip = chip()
        self.published = BANDWIDTHS.get(self.chip) if self.chip else None
        if self.on_cpu:
            start_cpu(threads)
            self.threads = _native().threads()
        if device == "cpu":
            self.kernels = _native().kernels()
        self._has_peaks = device == "cpu"  # MLX's own kernels have others

    def peaks(self) -> None:
        """The best so far: a peak that another process disturbed is none."""
        if self._has_peaks:
            self.int8 = max(self.int8 or 0, _native().int8_peak())
            self.fp32 = max(self.fp32 or 0, _native().fp32_peak())

    def read(self) -> list[float]:
        """One rate, or none where another device's memory would be the one to read."""
        rates = [_native().read_rate(BUFFER)] if self.on_cpu else []
        self.reads += rates
        return rates

    def machine(self) -> Machine:
        return Machine(
            read_median=median(self.reads) if self.reads else None,
            read_best=max(self.reads, default=None),
            int8_peak=self.int8,
            fp32_peak=self.fp32,
            chip=self.chip,
            published_bandwidth=self.published,
        )


class Passes:
    """What an engine does with a model, without sampling: prompts come in passes, tokens one by one."""

    def __init__(self, brought: Brought, sizes: Sizes) -> None:
        self._brought = brought
        vocab = brought.config.vocab
        self._tokens: list[int] = np.random.default_rng(0).integers(0, vocab, sizes.long + sizes.steps).tolist()
        self._long = list(range(pages(sizes.long + sizes.steps)))
        each = pages(sizes.before + sizes.steps)
        self._short = [[len(self._long) + each * s + i for i in range(each)] for s in range(max(BATCHES))]
        self._sizes = sizes

    def begin(self) -> None:
        """The short sequences' first tokens are in their pages."""
        for table in self._short:
            self._prefill(self._sizes.before, table)

    def prefill(self, tokens: int) -> None:
        self._prefill(tokens, self._long)

    def decode(self, sequences: int, past: int, steps: int) -> None:
        """Of the short sequences, which have so many tokens past."""
        self._decode(past, steps, self._short[:sequences])

    def decode_long(self, past: int, steps: int) -> None:
        self._decode(past, steps, [self._long])

    def _prefill(self, tokens: int, table: Sequence[int]) -> None:
        for at in range(0, tokens, PREFILL):
            end = min(at + PREFILL, tokens)
            self._run([[Span(self._tokens[at:end], at, table[: pages(end)], end == tokens)]])

    def _decode(self, past: int, steps: int, tables: Sequence[Sequence[int]]) -> None:
        def spans(at: int) -> list[Span]:
            return [Span([self._tokens[at]], at, table[: pages(at + 1)], True, True) for table in tables]

        self._run([spans(at) for at in range(past, past + steps)])

    def _run(self, passes: Sequence[Sequence[Span]]) -> None:
        """One after the other. As in the engine, each is described while the one before it runs."""
        ahead: tuple[PassOps, mx.array] | None = None
        for spans, following in zip(passes, (*passes[1:], None), strict=True):
            ops, logits = self._described(spans) if ahead is None or ahead[0].stale else ahead
            ops.begin()
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            ahead = self._described(following) if following else None
            mx.eval(logits)

    def _described(self, spans: Sequence[Span]) -> tuple[PassOps, mx.array]:
        ops = self._brought.ops_of(Batch.of(spans))
        return ops, self._brought.model.forward(ops)


class Measuring:
    """A model at hand, and what there is to measure of it; whoever holds this decides when each sample is taken."""

    def __init__(self, asked: Asked) -> None:
        with open_checkpoint(Path(asked.spec.path)) as checkpoint:
            config = config_of(checkpoint)
            self._brought, self.sizes = _brought(asked, config, checkpoint)
            self._weights = _weights(self._brought, find(config, checkpoint))
        self.probe = Probe(self._brought.device, asked.spec.threads)
        passes = Passes(self._brought, self.sizes)
        passes.begin()
        self.measurements = list(_measurements(self._brought, self._weights, passes, self.sizes, asked))

    def sample(self, measurement: Measurement) -> None:
        measurement.sample(self.probe.read)

    def report(self) -> Report:
        machine = self.probe.machine()
        return Report(
            model=self._brought.config.name,
            weight_bytes=self._weights.nbytes,
            device=self._brought.device,
            kernels=self.probe.kernels,
            threads=self.probe.threads,
            machine=machine,
            lines=tuple(line_of(measurement, machine) for measurement in self.measurements if measurement.timed),
        )


def measured(asked: Asked) -> Report:
    measuring = Measuring(asked)
    for sample in range(asked.repeat):
        measuring.probe.peaks()
        for measurement in measuring.measurements:
            if sample < measurement.times:
                measuring.sample(measurement)
    return measuring.report()


def pages(tokens: int) -> int:
    return -(-tokens // PAGE)


def _brought(asked: Asked, config: ModelConfig, checkpoint: GGUFFile | MLXFolder) -> tuple[Brought, Sizes]:
    """The model, with as much context as was asked for or there is memory for."""
    long = asked.context
    while True:
        sizes = Sizes.within(config.context, asked, long)
        spec = msgspec.structs.replace(asked.spec, context=sizes.context, cache_tokens=sizes.cache)
        try:
            return bring(spec, checkpoint), sizes
        except NotEnoughMemory:
            if long <= LEAST:
                raise
            long //= 2


def _weights(brought: Brought, found: Found) -> Weights:
    """The matrices as they lie on the device."""
    model = brought.model

    def stored(place: Place, matrix: Matrix) -> Stored:
        kind = found[place].format
        return Stored(matrix.rows, matrix.cols, matrix.nbytes, isinstance(kind, Format) and kind.dense)

    def layer(i: int) -> list[Stored]:
        of = model.layers[i]
        at = of.attention
        linears = (at.q, at.k, at.v, at.out, of.mlp.gate, of.mlp.up, of.mlp.down)
        return [stored((i, name), w.matrix) for name, w in zip(_NAMES, linears, strict=True)]

    q, k, v, *rest = layer(brought.config.layers - 1)
    return Weights(
        embedding=stored("embedding", model.embedding),
        every_row=[*(w for i in range(brought.config.layers - 1) for w in layer(i)), k, v],
        wanted_rows=[q, *rest, stored("embedding" if brought.config.tied else "head", model.head.matrix)],
        tied=brought.config.tied,
    )


_NAMES = ("q", "k", "v", "out", "gate", "up", "down")


def _measurements(
    brought: Brought, weights: Weights, passes: Passes, sizes: Sizes, asked: Asked
) -> Iterator[Measurement]:
    """The long prefill comes before the decoding that follows it."""
    config = brought.config
    kv = token_bytes(config, asked.spec.kv)

    def prefill(tokens: int, times: int) -> Measurement:
        burst = Burst(tokens, prefill_work(config, weights, tokens), partial(passes.prefill, tokens))
        return Measurement(f"prefill {tokens}", 1, 0, [burst], times)

    def decode(name: str, before: int, sequences: int, run: Callable[[int, int], None]) -> Measurement:
        def burst(past: int, steps: int) -> Burst:
            middle = past + (steps + 1) // 2
            work = decode_work(config, weights, kv, [middle] * sequences).times(steps)
            return Burst(steps * sequences, work, partial(run, past, steps))

        bursts = [burst(before + at, min(BURST, sizes.steps - at)) for at in range(0, sizes.steps, BURST)]
        return Measurement(name, sequences, before, bursts, asked.repeat)

    yield prefill(sizes.prompt, asked.repeat)
    yield decode("decode", sizes.before, 1, partial(passes.decode, 1))
    for count in BATCHES:
        yield decode(f"decode x{count}", sizes.before, count, partial(passes.decode, count))
    yield prefill(sizes.long, max(1, asked.repeat // LONG_LESS))
    yield decode(f"decode at {sizes.long}", sizes.long, 1, passes.decode_long)


def _native() -> ModuleType:
    """Imported where it is used: a machine with a GPU does without it."""
    from engine import _native as extension

    return extension
