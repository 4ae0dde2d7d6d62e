"""The whole engine over MLX's own kernels generates what transformers' logits say."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from engine.engine import Engine, Limits
from engine.messages import Sampling, Submit
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.models.oracle import tolerance, transformers_logits
from tests.tiny_models import tiny, write_gguf

PROMPTS = [np.random.default_rng(i).integers(0, 320, length).tolist() for i, length in enumerate((3, 40, 65))]


def engine_of(path: Path, dtype: mx.Dtype, pages: int = 16) -> Engine:
    with open_checkpoint(path) as checkpoint:
        config = config_of(checkpoint)
        model = Llama.load(config, checkpoint, BuiltinLoader(dtype))
    held = BuiltinPool(config, pages, PAGE, dtype)

    def ops_of(batch: Batch) -> BuiltinOps:
        return BuiltinOps(config, held, batch, dtype)

    return Engine(model, ops_of, PageCache(pages, held), Limits(context=256, vocab=config.vocab, max_batch=4))


def answers(engine: Engine, length: int) -> list[list[int]]:
    """What the prompts are answered with, greedily, all at once."""
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Submit(i, prompt, Sampling(max_tokens=length, temperature=0.0)))
    found: list[list[int]] = [[] for _ in PROMPTS]
    while engine.busy:
        for delta in engine.step():
            found[delta.id] += [sampled.token for sampled in delta.tokens]
    return found


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_greedy_answers_are_what_transformers_finds_likeliest(arch: str, tmp_path: Path) -> None:
    engine = engine_of(write_gguf(tmp_path, arch), mx.float32)
    for prompt, answer in zip(PROMPTS, answers(engine, 8), strict=True):
        logits = transformers_logits(tiny(arch), prompt + answer[:-1], tmp_path)
        for token, row in zip(answer, logits[len(prompt) - 1 :], strict=True):
            assert row[token] >= row.max() - tolerance(logits)  # two tokens as near as that are equally right


def test_every_dtype_of_activations_reaches_the_sampler(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", kind="bf16")
    for dtype in (mx.float16, mx.bfloat16):
        assert [len(answer) for answer in answers(engine_of(path, dtype), 4)] == [4, 4, 4]
