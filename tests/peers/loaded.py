"""Peak memory of loading a model, and then of running it, beside the size of its file.

Usage: python -m tests.peers.loaded FILE ... [--ctx N] [--threads N]
Each file is loaded by a fresh process onto the CPU, with the least context there is, and by another with N tokens of
it, which it fills: a prompt and 16 tokens of answer. A peak is the largest that the process ever was (VmHWM), its
interpreter and libraries included; "beyond" is without what it had before it opened the file. Linux only.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Imported here, and not when they are used: what they take is not the model's.
from engine import _native, native_ops, native_weights  # noqa: F401
from engine.load import load
from engine.messages import EngineSpec, Sampling, Submit
from kvcache.pages import PAGE

ANSWER = 16


def peak() -> int:
    """Bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def loading(spec: EngineSpec) -> tuple[int, int]:
    """The peaks before the file is opened, and when it is loaded."""
    before = peak()
    load(spec)
    return before, peak()


def running(spec: EngineSpec) -> tuple[int, int]:
    """The same when the context is full."""
    before = peak()
    engine = load(spec).engine
    tokens = engine.limits.context - ANSWER
    engine.submit(Submit(1, [5 + i % 250 for i in range(tokens)], Sampling(max_tokens=ANSWER, temperature=0)))
    while engine.busy:
        engine.step()
    return before, peak()


def in_a_fresh_process(measure: Callable[[EngineSpec], tuple[int, int]], spec: EngineSpec) -> tuple[int, int]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(measure, spec).result()


def nbytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    print("| | file, GB | peak, GB | over the file | beyond interpreter and libraries, GB | over the file |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path in asked.files:
        size = nbytes(path)
        for name, measure, context in (("loaded", loading, PAGE), (f"{asked.ctx} tokens run", running, asked.ctx)):
            spec = EngineSpec(path=str(path), context=context, threads=asked.threads, device="cpu")
            before, most = in_a_fresh_process(measure, spec)
            cells = [size / 1e9, most / 1e9, most / size, (most - before) / 1e9, (most - before) / size]
            print(f"| {path.name}, {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
