"""What the formats of the cache's pages cost and give: error of logits against float32 pages, and speed of decoding.

Usage: python -m tests.peers.kv_error FILE [--tokens N] [--context N] [--rounds N]
The prompt is N random tokens, cut off after each of the last 16; the error is the root mean square of the difference of
logits over that of the logits less their mean. For the speed a context is filled with copies of the prompt's pages, and
the formats take turns at one token.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.batch import Batch, Span
from engine.load import CPU_KV, start_cpu
from engine.memory import token_bytes
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint

LAST = 16  # tokens after which logits are compared
EXACT = "f32"


@dataclass
class Cache:
    """Pages of one format for a context, and a model that fills and reads them."""

    model: Llama
    pool: NativePool
    pages: Sequence[int]

    def logits(self, tokens: Sequence[int], past: int) -> npt.NDArray[np.float32]:
        ops = NativeOps(self.model.config, self.pool, Batch.of([Span(tokens, past, self.pages, wants_logits=True)]))
        row: npt.NDArray[np.float32] = np.array(self.model.forward(ops))[0]
        return row

    def last_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        """After each of the last tokens."""
        before = len(prompt) - LAST
        self.logits(prompt[:before], 0)
        return np.stack([self.logits(prompt[at : at + 1], at) for at in range(before, len(prompt))])

    def spread(self, filled: int) -> None:
        """The first pages, that are full, are copied over all the others."""
        for at in range(filled, len(self.pages)):
            self.pool.copy(self.pages[at % filled], self.pages[at])

    def seconds(self, token: int) -> float:
        """Of one token at the context's end."""
        started = time.perf_counter()
        self.logits([token], len(self.pages) * PAGE - 1)
        return time.perf_counter() - started


def relative(got: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> float:
    centred = exact - exact.mean(-1, keepdims=True)
    return float(np.sqrt(((got - exact) ** 2).mean() / (centred**2).mean()))


def table(path: Path, tokens: int, context: int, rounds: int) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        config = config_of(checkpoint)
        model = Llama.load(config, checkpoint, NativeLoader())
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, config.vocab, tokens).tolist()
    pages = rng.permutation(context // PAGE).tolist()
    caches = {kv: Cache(model, NativePool(config, len(pages), context, dtype), pages) for kv, dtype in CPU_KV.items()}
    exact = caches[EXACT].last_logits(prompt)
    errors = {kv: relative(cache.last_logits(prompt), exact) for kv, cache in caches.items()}
    for cache in caches.values():
        cache.spread(tokens // PAGE)
        cache.seconds(prompt[0])  # the first touches what later ones have at hand
    turns = [{kv: cache.seconds(token) for kv, cache in caches.items()} for token in prompt[:rounds]]
    lines = [
        f"| pages | bytes a token | error of logits | decode at {context} | from - to |",
        "| --- |" + " ---: |" * 4,
    ]
    for kv in CPU_KV:
        rates = [1 / turn[kv] for turn in turns]
        each = f"{median(rates):.1f} | {min(rates):.1f} - {max(rates):.1f}"
        lines.append(f"| {kv} | {token_bytes(config, kv)} | {errors[kv]:.2e} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=24)
    asked = parser.parse_args()
    mx.set_default_device(mx.Device(mx.cpu))
    start_cpu(None)
    print("\n".join(table(asked.file, asked.tokens, asked.context, asked.rounds)))


if __name__ == "__main__":
    main()
