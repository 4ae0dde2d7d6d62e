"""Law 1 on the CPU: what a request is answered with depends on the request alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.engine import Engine
from engine.load import CPU_KV, load
from engine.messages import EngineSpec, Logprob, Sampled, Sampling, Submit
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.tiny_models import write_gguf, write_mlx

KV = Literal["f16", "q8", "q4"]

CONTEXT = 2048
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama q4_k": lambda folder: write_gguf(folder, "llama", kind="q4_k", context=CONTEXT),
    "qwen3 q8_0": lambda folder: write_gguf(folder, "qwen3", kind="q8_0", context=CONTEXT),
    "qwen2 f16": lambda folder: write_gguf(folder, "qwen2", kind="f16", context=CONTEXT),
    "mistral, window, q6_k": lambda folder: write_gguf(folder, "mistral", kind="q6_k", context=CONTEXT),
    "mlx 4 bits": lambda folder: write_mlx(folder, "llama", bits=4, context=CONTEXT),
}
# Quantised pages with one model each: of Dh 64, which is two groups, and of 16, which is half of one.
QUANTISED: dict[str, KV] = {"llama q4_k": "q8", "qwen3 q8_0": "q4"}
CASES: list[tuple[str, KV]] = [(name, "f16") for name in MODELS] + list(QUANTISED.items())
every_case = pytest.mark.parametrize(("model", "kv"), CASES)


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    sampling: Sampling


def sixteen() -> list[Asked]:
    """Prompts from 1 token to more than one pass takes, greedy and seeded, with every way of choosing."""
    rng = random.Random(16)
    lengths = [1, 2, 31, 32, 33, 64, 100, 127, 128, 129, 200, 255, 400, 513, 640, 700]
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 2**63},
        {"temperature": 1.3, "min_p": 0.02, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "seed": 99},
    ]
    return [
        Asked(
            tuple(rng.randrange(5, 300) for _ in range(length)),
            Sampling(max_tokens=rng.randrange(5, 40), logprobs=2, **ways[i % len(ways)]),
        )
        for i, length in enumerate(lengths)
    ]


def engine_of(path: Path, kv: KV) -> Engine:
    return load(EngineSpec(path=str(path), context=1024, cache_tokens=4096, device="cpu", threads=2, kv=kv)).engine


def answered(engine: Engine, asked: list[Asked]) -> list[list[Sampled]]:
    """Tokens with their logprobs, for requests that come one step after the other."""
    answers: list[list[Sampled]] = [[] for _ in asked]
    waiting = list(enumerate(asked))
    while waiting or engine.busy:
        if waiting:
            i, request = waiting.pop(0)
            engine.submit(Submit(i, list(request.prompt), request.sampling))
        for delta in engine.step():
            answers[delta.id] += delta.tokens
    return answers


@every_case
def test_sixteen_requests_at_once_are_answered_as_each_alone(model: str, kv: KV, tmp_path: Path) -> None:
    engine = engine_of(MODELS[model](tmp_path), kv)
    alone = [answered(engine, [request])[0] for request in sixteen()]
    together = answered(engine, sixteen())
    assert together == alone
    assert all(isinstance(token.logprob, float) and isinstance(token.top[0], Logprob) for token in alone[0])


@every_case
def test_logits_have_the_same_bits_however_the_prompt_is_cut(model: str, kv: KV, tmp_path: Path) -> None:
    with open_checkpoint(MODELS[model](tmp_path)) as checkpoint:
        config = config_of(checkpoint)
        llama = Llama.load(config, checkpoint, NativeLoader())
    prompt = np.random.default_rng(3).integers(0, config.vocab, 300).tolist()
    pages = list(range(-(-len(prompt) // PAGE)))

    def logits(cut: int) -> bytes:
        pool = NativePool(config, len(pages), CONTEXT, CPU_KV[kv])
        for past in range(0, len(prompt), cut):
            batch = Batch.of([Span(prompt[past : past + cut], past, pages, wants_logits=True)])
            last = np.array(llama.forward(NativeOps(config, pool, batch)))
        return last.tobytes()

    whole = logits(len(prompt))
    assert [cut for cut in (1, 7, 32, 128, 299) if logits(cut) != whole] == []
