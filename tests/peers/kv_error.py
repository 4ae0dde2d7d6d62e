"""What the formats of the cache's pages cost and give: error of logits against float32 pages, and speed of decoding.

Usage: python -m tests.peers.kv_error FILE [--tokens N] [--context N] [--rounds N]
An error is the root mean square of the difference to what float32 pages give, over that of what they give. The error of
attention is that of its outputs for N normal queries, keys and values in the model's shape. The error of the logits is
taken after each of the last 16 of N random tokens, their mean left out; where activations are rounded to 8 bits, any
difference at all grows to that rounding's size, so it says how much, if anything, pages add to that. For the speed a
context is filled with copies of the prompt's pages, and the formats take turns at one token.
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

from engine import _native
from engine.batch import Batch, Span
from engine.load import CPU_KV, start_cpu
from engine.memory import token_bytes
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import AttentionShape, config_of
from models.llama import Llama
from quant.open import open_checkpoint

Floats = npt.NDArray[np.float32]

LAST = 16  # tokens after which logits are compared
EXACT = "f32"


@dataclass
class Cache:
    """Pages of one format for a context, and a model that fills and reads them."""

    model: Llama
    pool: NativePool
    pages: Sequence[int]

    def logits(self, tokens: Sequence[int], past: int) -> Floats:
        ops = NativeOps(self.model.config, self.pool, Batch.of([Span(tokens, past, self.pages, wants_logits=True)]))
        row: Floats = np.array(self.model.forward(ops))[0]
        return row

    def last_logits(self, prompt: Sequence[int]) -> Floats:
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


def attended(shape: AttentionShape, tokens: int, dtype: mx.Dtype) -> Floats:
    """Attention (T, H * Dh) of normal numbers over each other, by pages of that type."""
    rng = np.random.default_rng(1)
    pages = np.arange(-(-tokens // PAGE), dtype=np.int32)[None]
    memory = _native.unwritten_pages(pages.size, _native.page_elements(shape.kv_heads, shape.head_dim, dtype), dtype)
    plan = _native.AttentionPlan.of(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.scale,
        window=0,
        eps=0,
        interleaved=False,
        starts=np.array([0, tokens], np.int32),
        past=np.zeros(1, np.int32),
        tables=pages,
        rope=mx.array(np.tile(np.array([1, 0], np.float32), (tokens, 1))),  # turns nothing
    )
    q, k, v = (
        mx.array(rng.standard_normal((tokens, heads * shape.head_dim), np.float32))
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    out: Floats = np.array(_native.attend(plan, memory, q, k, v, None, None))
    return out


def relative(got: Floats, exact: Floats) -> float:
    return float(np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()))


def centred(logits: Floats) -> Floats:
    return logits - logits.mean(-1, keepdims=True)


def table(path: Path, tokens: int, context: int, rounds: int) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        config = config_of(checkpoint)
        model = Llama.load(config, checkpoint, NativeLoader())
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, config.vocab, tokens).tolist()
    pages = rng.permutation(context // PAGE).tolist()
    caches = {kv: Cache(model, NativePool(config, len(pages), context, dtype), pages) for kv, dtype in CPU_KV.items()}
    logits = {kv: centred(cache.last_logits(prompt)) for kv, cache in caches.items()}
    mixed = {kv: attended(config.attention, tokens, dtype) for kv, dtype in CPU_KV.items()}
    for cache in caches.values():
        cache.spread(tokens // PAGE)
        cache.seconds(prompt[0])  # the first touches what later ones have at hand
    turns = [{kv: cache.seconds(token) for kv, cache in caches.items()} for token in prompt[:rounds]]
    columns = ["bytes a token", "error of attention", "error of logits", f"decode at {context}", "from - to"]
    lines = [" | ".join(["| pages", *columns]) + " |", "| --- |" + " ---: |" * len(columns)]
    for kv in CPU_KV:
        rates = [1 / turn[kv] for turn in turns]
        errors = [f"{relative(of[kv], of[EXACT]):.1e}" for of in (mixed, logits)]
        speed = [f"{median(rates):.1f}", f"{min(rates):.1f} - {max(rates):.1f}"]
        lines.append(" | ".join([f"| {kv}", str(token_bytes(config, kv)), *errors, *speed]) + " |")
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
