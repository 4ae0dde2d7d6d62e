"""What prompts on the CPU do to decoding on another stream, beside what they do to it from another process.

Usage: python -m tests.peers.two_streams FILE [--seconds S] [--rounds N] [--prompt N] [--streams N]

A stream of MLX's CPU device stands in for a GPU that decodes: the engine with MLX's own kernels, which keep to the
stream's thread. Prompts are computed as `--prefill cpu` does it, by our own kernels over the same copy of the weights
(engine/beside.py), here with one thread. Each round measures decoding alone, decoding beside these prompts, and the
contention of the machine itself: the same decoding beside the same prompts in another process, which shares nothing
with it but caches, memory and clock. Placement costs nothing of its own where the two ratios are equal. FILE should be
small: MLX's CPU kernels are slow.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import mlx.core as mx
import numpy as np

from engine.batch import Span
from engine.beside import Beside
from engine.engine import Engine
from engine.load import start_cpu
from engine.messages import Sampling, Submit
from tests.two_streams import Weights

READY = "prompts are computed"


class Prompts:
    """One prompt after another, never the same twice, until told to stop."""

    def __init__(self, weights: Weights, length: int) -> None:
        self._weights, self._length = weights, length
        self._stop = threading.Event()
        self.begun = threading.Event()

    def run(self) -> None:
        config, dtype = self._weights.config, self._weights.dtype
        beside = Beside(self._weights.model, self._length, dtype)
        nothing = [mx.zeros((0, 2, config.attention.kv_heads, config.attention.head_dim), dtype)] * config.layers
        mx.eval(nothing)
        rng = np.random.default_rng(1)
        while not self._stop.is_set():
            tokens = rng.integers(5, config.vocab, self._length).tolist()
            beside.start([Span(tokens, 0, [], wants_logits=False)], [nothing])
            self.begun.set()
            while not self._stop.is_set() and not beside.wait(0.05):
                pass
            if beside.done:
                beside.take()
        beside.close()

    def stop(self) -> None:
        self._stop.set()


class Decoding:
    """Streams that decode without end."""

    def __init__(self, weights: Weights, streams: int, context: int) -> None:
        self._engine: Engine = weights.engine(context, streams)
        self._weights, self._streams, self._context = weights, streams, context
        self._names = 0

    def rate(self, seconds: float) -> float:
        """Tokens a second of all streams; prompts of one token are no work."""
        self._fill()
        tokens, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            tokens += len(self._engine.step())
            self._fill()
        return tokens / passed

    def _fill(self) -> None:
        while len(self._engine.report().requests) < self._streams:
            self._names += 1
            sampling = Sampling(max_tokens=self._context - 2, temperature=0)
            self._engine.submit(Submit(self._names, [5 + self._names % 200], sampling))


@contextmanager
def in_this_process(weights: Weights, length: int) -> Iterator[None]:
    prompts = Prompts(weights, length)
    thread = threading.Thread(target=prompts.run)
    thread.start()
    prompts.begun.wait()
    try:
        yield
    finally:
        prompts.stop()
        thread.join()


@contextmanager
def in_another(file: Path, length: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.peers.two_streams", str(file), "--prompt", str(length), "--only-prompts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == READY
        try:
            yield
        finally:
            process.terminate()


def only_prompts(weights: Weights, length: int) -> None:
    prompts = Prompts(weights, length)
    threading.Thread(target=prompts.run).start()
    prompts.begun.wait()
    print(READY, flush=True)


def measure(asked: argparse.Namespace) -> None:
    weights = Weights.of(asked.file)
    decoding = Decoding(weights, asked.streams, 256)
    decoding.rate(asked.seconds / 4)  # the first passes allocate
    streams, processes = [], []
    for _ in range(asked.rounds):
        alone = decoding.rate(asked.seconds)
        with in_this_process(weights, asked.prompt):
            beside = decoding.rate(asked.seconds)
        with in_another(asked.file, asked.prompt):
            contended = decoding.rate(asked.seconds)
        again = decoding.rate(asked.seconds)
        alone = (alone + again) / 2
        streams.append(beside / alone)
        processes.append(contended / alone)
        print(
            f"alone {alone:6.1f} tok/s; beside a stream {streams[-1]:.2f} of it, beside a process {processes[-1]:.2f}"
        )
    kept, possible = median(streams), median(processes)
    print(
        f"\ndecoding keeps {kept:.2f} of its rate beside prompts on another stream, and {possible:.2f} beside them in"
    )
    print(f"another process, which is the machine's contention; the rounds spread by {spread(streams):.2f} and")
    print(f"{spread(processes):.2f}. Left for the streams to answer for: {possible - kept:+.2f}")


def spread(values: list[float]) -> float:
    return max(values) - min(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--only-prompts", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    mx.set_default_device(mx.Device(mx.cpu))
    start_cpu(1)
    if asked.only_prompts:
        only_prompts(Weights.of(asked.file), asked.prompt)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
