"""A pass through rope, the pool and both classes of attention, beside MLX's own operations as the baseline has them."""

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.metal.attention import (
    PAGE,
    PAGES,
    DecodeWork,
    Layout,
    PrefillWork,
    Shape,
    decode_call,
    merge_call,
    prefill_call,
    roomy,
)
from engine.metal.attention_numbers import Array
from engine.metal.attention_reference import attended
from engine.metal.layer import Turns, rope_call, written
from models.config import AttentionShape, ModelConfig
from models.ops import HeadNorms
from models.rope import Rope
from tests.metal_host.layer_cases import ran

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
SHAPE = Shape(4, 2, 64, None, "float32", PAGES["float32"], Layout.by_token(2, 64))
TURNS = Turns(4, 2, 64, ROPE.dims, ROPE.interleaved, head_norms=True)


class Twins:
    """Two pools, one written and read by MLX's operations, one by our kernels, and the weights of the head norms."""

    def __init__(self) -> None:
        self.theirs, self.ours = (BuiltinPool(CONFIG, 24, PAGE, mx.float32) for _ in range(2))
        rng = np.random.default_rng(3)
        self.norms = [rng.uniform(0.5, 1.5, 64).astype(np.float32) for _ in range(2)]

    def baseline(self, batch: Batch, q: Array, k: Array, v: Array) -> Array:
        ops = BuiltinOps(CONFIG, self.theirs, batch, mx.float32)
        norms = HeadNorms(*(mx.array(norm) for norm in self.norms))
        mixed = ops.attend(0, mx.array(q), mx.array(k), mx.array(v), norms)
        ops.begin()
        out = np.array(mixed)
        mx.eval(self.theirs.layers)
        return out.reshape(len(q), 4, 64)

    def kernels(self, batch: Batch, q: Array, k: Array, v: Array, prompts: list[int]) -> tuple[Array, Array]:
        """What comes out, and the queries that went into attention."""
        positions = roomy(batch.positions)
        turned: dict[str, Array] = {
            "turns": np.array(self.ours.turns),
            "positions": positions,
            "eps": np.asarray(EPS, np.float32),
        }
        turned |= {"q": q, "k": k, "v": v, "q_norm": self.norms[0], "k_norm": self.norms[1]}
        queries, kv = ran(rope_call(TURNS, len(q), "float32", "float32", SHAPE.pages), turned)
        sequence = np.repeat(np.arange(len(batch.past)), np.diff(batch.starts))
        slots = batch.tables[sequence, batch.positions // PAGE] * PAGE + batch.positions % PAGE
        self.ours.layers[0] = written(self.ours.layers[0], mx.array(slots), mx.array(kv))
        inputs: dict[str, Array] = {"q": queries, "pool": np.array(self.ours.layers[0]), "tables": roomy(batch.tables)}
        inputs |= {"positions": positions, "scale": np.asarray(0.125, np.float32)}
        out = np.empty_like(queries)
        answers = [b for b in range(len(batch.past)) if b not in prompts]
        if answers:
            work = DecodeWork.of(SHAPE, batch.starts, batch.past, answers)
            partials = ran(decode_call(SHAPE, work), {**inputs, "work": roomy(work.items)})[0]
            out[work.served] = ran(merge_call(SHAPE, work), {"partials": partials, "parts": roomy(work.parts)})[0]
        if prompts:
            tiles = PrefillWork.of(batch.starts, prompts)
            out[tiles.served] = ran(prefill_call(SHAPE, tiles), {**inputs, "work": roomy(tiles.items)})[0]
        return out, queries


def random_rows(rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
    q, k, v = (rng.standard_normal((count, heads * 64)).astype(np.float32) for heads in (4, 2, 2))
    return q, k, v


def test_passes_of_prompts_and_answers_agree_with_the_baseline() -> None:
    """Both err by less than the bound of attention, on keys that agree to rope's bound, 2^-20 of them."""
    twins, rng = Twins(), np.random.default_rng(0)
    pages = [[5, 2, 9, 0, 17, 3, 11, 8, 1, 20], [7, 4], [12, 13]]
    passes = [([(0, 0, 70), (1, 0, 33)], [0, 1]), ([(0, 70, 200), (1, 33, 1), (2, 0, 40)], [0, 2])]
    passes += [([(1, 34, 1), (0, 270, 2), (2, 40, 1)], [])]
    for spans, prompts in passes:
        batch = Batch.of([Span([1] * n, past, pages[s], wants_logits=False) for s, past, n in spans])
        rows = random_rows(rng, len(batch.tokens))
        theirs = twins.baseline(batch, *rows)
        ours, queries = twins.kernels(batch, *rows, [i for i, (s, _, _) in enumerate(spans) if s in prompts])
        pool = np.array(twins.ours.layers[0]).astype(np.float64)
        np.testing.assert_allclose(pool, np.array(twins.theirs.layers[0]), rtol=0, atol=2**-18)
        for b, (s, past, n) in enumerate(spans):
            token = np.arange(past + n)
            kv = pool[np.array(pages[s])[token // PAGE] * PAGE + token % PAGE]
            mine = slice(batch.starts[b], batch.starts[b + 1])
            want = attended(SHAPE, "prefill", queries[mine].astype(np.float64), kv[:, 0], kv[:, 1], 0.125, past)
            np.testing.assert_array_less(np.abs(ours[mine] - want.exact), want.bound)
            np.testing.assert_array_less(np.abs(theirs[mine] - want.exact), want.bound + 2**-15)
