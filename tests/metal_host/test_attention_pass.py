"""A pass through rope, the pool and both classes of attention, beside MLX's own operations as the baseline has them."""

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.metal.attention import PAGE, PAGES, Layout, Shape
from engine.metal.attention_pass import AttentionPass
from engine.metal.attention_reference import Class
from engine.metal.attention_ways import Way
from engine.metal.layer import Turns
from models.config import AttentionShape, ModelConfig
from models.ops import HeadNorms
from models.rope import Rope
from tests.metal_host.layer_cases import on_host

EPS = 1e-6
ROPE = Rope(10_000.0, 48, interleaved=False)
CONFIG = ModelConfig(
    architecture="qwen3",
    name="",
    vocab=8,
    width=8,
    layers=1,
    ffn=8,
    eps=EPS,
    context=512,
    attention=AttentionShape(heads=4, kv_heads=2, head_dim=64, scale=0.125, rope=ROPE, window=None),
    tied=False,
    qkv_bias=False,
    head_norms=True,
)
SHAPE = Shape(4, 2, 64, None, "float32", "float32", PAGES["float32"], Layout.by_token(2, 64))
TURNS = Turns(4, 2, 64, ROPE.dims, ROPE.interleaved, head_norms=True)


KINDS: tuple[Class, ...] = ("decode", "prefill")
OURS = {kind: Way("paged", kind, SHAPE, on_host) for kind in KINDS}
MIXED = {"decode": OURS["decode"], "prefill": Way("mlx", "prefill", SHAPE, None)}

# Sequences 0 to 2: what each brings as (sequence, past, n), and which of them are prompts.
PASSES = [
    (((0, 0, 70), (1, 0, 33)), (0, 1)),
    (((0, 70, 200), (1, 33, 1), (2, 0, 40)), (0, 2)),
    (((1, 34, 1), (0, 270, 2), (2, 40, 1)), ()),
]
TABLES = ((5, 2, 9, 0, 17, 3, 11, 8, 1, 20), (7, 4), (12, 13))


def batch_of(spans: tuple[tuple[int, int, int], ...]) -> Batch:
    return Batch.of([Span([1] * n, past, TABLES[s], wants_logits=False) for s, past, n in spans])


def random_rows(rng: np.random.Generator, count: int) -> tuple[mx.array, mx.array, mx.array]:
    q, k, v = (mx.array(rng.standard_normal((count, heads * 64)).astype(np.float32)) for heads in (4, 2, 2))
    return q, k, v


def a_pool() -> BuiltinPool:
    return BuiltinPool(CONFIG, 24, PAGE, mx.float32)


@pytest.mark.parametrize("ways", [OURS, MIXED], ids=["ours", "ours for answers"])
def test_passes_of_prompts_and_answers_agree_with_the_baseline(ways: dict[Class, Way]) -> None:
    """Keys are a few roundings of numbers below 8. Scores are sums of magnitudes near 8 with 65 roundings, weighted
    sums have 270, above and below the line, and values are near 1: together 2^-13."""
    theirs, ours, rng = a_pool(), a_pool(), np.random.default_rng(0)
    weights = HeadNorms(*(mx.array(rng.uniform(0.5, 1.5, 64).astype(np.float32)) for _ in range(2)))
    for spans, prompts in PASSES:
        batch = batch_of(spans)
        rows = random_rows(rng, len(batch.tokens))
        of_prompts = [i for i, (s, _, _) in enumerate(spans) if s in prompts]
        classes: dict[Class, list[int]] = {
            "decode": [i for i in range(len(spans)) if i not in of_prompts],
            "prefill": of_prompts,
        }
        here = AttentionPass.of(SHAPE, TURNS, EPS, 0.125, ours.turns, batch, classes, ways, on_host)
        got = np.array(here.attend(ours.layers[0], *rows, weights))
        want = np.array(BuiltinOps(CONFIG, theirs, batch, mx.float32).attend(0, *rows, weights))
        mx.eval(ours.layers, theirs.layers)
        np.testing.assert_allclose(np.array(ours.layers[0]), np.array(theirs.layers[0]), rtol=0, atol=2**-18)
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=0, atol=2**-13)


def test_a_sequence_that_nobody_serves_is_noticed() -> None:
    batch, table = batch_of(PASSES[1][0]), mx.zeros((300, 48))
    with pytest.raises(AssertionError, match="one class"):
        AttentionPass.of(SHAPE, TURNS, EPS, 0.125, table, batch, {"decode": [1], "prefill": [0]}, OURS, on_host)
