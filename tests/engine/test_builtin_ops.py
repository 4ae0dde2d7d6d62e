"""MLX's own kernels over pages: nobody sees another's keys, and writing a page copies nothing."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from models.config import AttentionShape, ModelConfig
from models.rope import Rope
from tests.models.passes import Runner
from tests.tiny_models import write_gguf

TOKENS = np.random.default_rng(11).integers(0, 320, 200).tolist()


def span(start: int, stop: int, past: int, pages: Sequence[int], wants_logits: bool = True) -> Span:
    return Span(TOKENS[start:stop], past, pages, wants_logits)


@pytest.fixture(params=[{}, {"window": 10}], ids=["full", "window"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    return Runner(write_gguf(tmp_path, "llama", **request.param))


# Sums over 64 to 128 values in another order differ by some units in the last place of logits near 8.
CLOSE = 64 * float(np.finfo(np.float32).eps) * 8


def test_sequences_in_one_pass_compute_what_each_computes_alone(runner: Runner) -> None:
    alone = [runner.step([s])[0] for s in (span(0, 40, 0, [0, 1]), span(50, 57, 0, [2]), span(60, 61, 0, [3]))]
    together = runner.step([span(0, 40, 0, [8, 4]), span(50, 57, 0, [5]), span(60, 61, 0, [6])])
    np.testing.assert_allclose(together, alone, rtol=0, atol=CLOSE)
    alone = [runner.step([s])[0] for s in (span(40, 41, 40, [0, 1]), span(57, 58, 7, [2]), span(61, 70, 1, [3]))]
    mixed = [span(61, 70, 1, [6]), span(40, 41, 40, [8, 4]), span(57, 58, 7, [5])]
    np.testing.assert_allclose(runner.step(mixed), [alone[2], alone[0], alone[1]], rtol=0, atol=CLOSE)


def test_only_the_rows_that_want_logits_have_them(runner: Runner) -> None:
    both = runner.step([span(0, 9, 0, [0]), span(20, 25, 0, [1])])
    one = runner.step([span(0, 9, 0, [2], wants_logits=False), span(20, 25, 0, [3])])
    assert one.shape == (1, 320)
    np.testing.assert_allclose(one[0], both[1], rtol=0, atol=CLOSE)


def test_a_pass_that_wants_no_logits_still_writes_its_keys(runner: Runner) -> None:
    whole = runner.step([span(0, 30, 0, [0])])
    assert runner.step([span(0, 29, 0, [1], wants_logits=False)]).shape == (0, 320)
    np.testing.assert_allclose(runner.step([span(29, 30, 29, [1])]), whole, rtol=0, atol=CLOSE)


def test_what_lies_in_pages_that_were_not_written_is_never_seen(runner: Runner) -> None:
    spans = [span(0, 40, 0, [3, 1]), span(50, 57, 0, [2]), span(60, 67, 0, [5])]
    clean = runner.step(spans)
    for layer, kept in enumerate(runner.pool.layers):
        poisoned = mx.full(kept.shape, float("nan"), kept.dtype)
        poisoned[runner.pool.nowhere] = 0.0
        runner.pool.layers[layer] = poisoned
    np.testing.assert_array_equal(runner.step(spans), clean)


def _config(layers: int) -> ModelConfig:
    rope = Rope(theta=10000.0, dims=64, interleaved=False)
    shape = AttentionShape(heads=8, kv_heads=4, head_dim=64, scale=0.125, rope=rope, window=None)
    return ModelConfig("llama", "memory", 32, 512, layers, 64, 1e-5, 64, shape, True, False, False)


@pytest.mark.parametrize("rows", [1, 64])
def test_writing_keys_and_values_copies_no_pool(rows: int) -> None:
    config = _config(layers=2)
    pool = BuiltinPool(config, pages=1024, page_size=32, dtype=mx.float16)
    one_layer = pool.layers[0].nbytes
    batch = Batch.of([Span([1] * rows, 0, [1000, 7], wants_logits=True)])

    def step() -> None:
        ops = BuiltinOps(config, pool, batch, mx.float16)
        q = mx.ones((rows, 512), mx.float16)
        k = mx.ones((rows, 256), mx.float16)
        mixed = [ops.attend(layer, q, k, k, None) for layer in range(config.layers)]
        ops.begin()
        mx.eval(mixed)

    step()  # the first may allocate what later ones reuse
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        step()
    # All that a step needs beside the pool is some activations: far less than a quarter of one layer's 64 MiB.
    assert mx.get_peak_memory() - before < one_layer / 4
    assert mx.get_active_memory() - before < one_layer / 4
    assert float(pool.layers[1][1000 * 32, 1, 0, 0]) == 1.0


def test_a_second_reference_to_the_pool_does_copy_it() -> None:
    config = _config(layers=1)
    pool = BuiltinPool(config, pages=1024, page_size=32, dtype=mx.float16)
    batch = Batch.of([Span([1], 0, [3], wants_logits=True)])
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    kept = pool.layers[0][:]
    ops = BuiltinOps(config, pool, batch, mx.float16)
    mixed = ops.attend(0, mx.ones((1, 512)), mx.ones((1, 256)), mx.ones((1, 256)), None)
    ops.begin()
    mx.eval(mixed)
    assert mx.get_peak_memory() - before >= pool.layers[0].nbytes, "so the law above measures what it says"
    assert float(kept[3 * 32, 0, 0, 0]) == 0.0
