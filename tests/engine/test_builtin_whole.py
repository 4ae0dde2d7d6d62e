"""The engine as it runs on a GPU, whole, with our own primitives switched off: same answers, and no copy of the pool.

The GPU is MLX's default device; where there is none it is MLX's CPU device, with MLX's own kernels all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.engine import Engine
from engine.load import load
from engine.messages import Asker, Delta, EngineSpec, Sampling, Submit
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.tiny_models import write_gguf

CONTEXT = 512
LENGTH = 72  # tokens of an answer: two pages and more
COMMON = np.random.default_rng(0).integers(5, 300, 70).tolist()  # every second prompt begins so
GREEDY = Sampling(max_tokens=LENGTH, temperature=0)


def prompt(i: int) -> list[int]:
    own: list[int] = np.random.default_rng(i + 1).integers(5, 300, 3 + 17 * i % 120).tolist()
    return COMMON + own if i % 2 else own


ASKED = [Submit(i, prompt(i), GREEDY, Asker(client=f"client {i % 3}")) for i in range(16)]


def engine_of(path: Path, cache: int = 4096) -> Engine:
    """Room for `cache` tokens."""
    return load(EngineSpec(path=str(path), device="builtin", kv="f32", context=CONTEXT, cache_tokens=cache)).engine


@dataclass
class Answers:
    tokens: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    most: int = 0  # sequences that ran at once

    def hear(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            assert delta.fault is None
            self.tokens.setdefault(delta.id, []).extend(sampled.token for sampled in delta.tokens)
            if delta.cost is not None:
                self.cached[delta.id] = delta.cost.cached


def ahead(engine: Engine) -> tuple[Delta, ...]:
    """A step as the engine's process takes it: the next pass is described while this one runs."""
    running = engine.start()
    if running is None:
        return ()
    engine.prepare(running)
    return engine.finish(running)


def answers(engine: Engine, step: Callable[[Engine], tuple[Delta, ...]] = ahead) -> Answers:
    found = Answers()
    for submit in ASKED:
        engine.submit(submit)
    while engine.busy:
        found.hear(step(engine))
        engine.check()
        found.most = max(found.most, sum(request.pages > 0 for request in engine.report().requests))
    return found


class Native:
    """Our own primitives, one sequence, decoded token by token."""

    def __init__(self, path: Path) -> None:
        with open_checkpoint(path) as checkpoint:
            self._config = config_of(checkpoint)
            self._model = Llama.load(self._config, checkpoint, NativeLoader())

    def logits(self, begin: list[int], answer: list[int]) -> npt.NDArray[np.float32]:
        """Of each token of an answer, (tokens, V)."""
        pages = list(range(CONTEXT // PAGE))
        pool = NativePool(self._config, len(pages), CONTEXT, mx.float32)
        history = begin + answer
        spans = [Span(begin, 0, pages, True)]
        spans += [Span([history[at]], at, pages, True) for at in range(len(begin), len(history) - 1)]
        with mx.stream(mx.cpu):
            of = [self._model.forward(NativeOps(self._config, pool, Batch.of([span]))) for span in spans]
            return np.concatenate([np.array(logits) for logits in of])


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_sixteen_at_once_are_answered_as_by_our_own_kernels(arch: str, tmp_path: Path) -> None:
    """With the prefix cache, and with so few pages that sequences give theirs back."""
    path = write_gguf(tmp_path, arch, context=CONTEXT)
    roomy, tight = engine_of(path), engine_of(path, CONTEXT)
    native = Native(path)
    for engine in (roomy, tight):
        found = answers(engine)
        for submit in ASKED:
            answer = found.tokens[submit.id]
            assert len(answer) == LENGTH
            for token, row in zip(answer, native.logits(submit.prompt, answer), strict=True):
                # Both compute in float32, where a logit is a chain of some hundred roundings of half a unit of the
                # largest value, after layers of as many; so either may prefer one of two that are as near as that.
                assert row[token] >= row.max() - 2 * 200 * 2**-24 * float(np.abs(row).max())
        if engine is roomy:
            assert found.most == 16
            assert sum(found.cached.values()) >= 7 * (len(COMMON) // PAGE * PAGE)
        else:
            assert engine.report().cache.preempted > 0


def test_a_pass_that_is_described_ahead_changes_no_answer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", context=CONTEXT)
    assert answers(engine_of(path)).tokens == answers(engine_of(path), Engine.step).tokens


def test_no_pass_copies_the_pool(tmp_path: Path) -> None:
    """Neither prompts nor answers, alone or sixteen, described ahead or not."""
    path = write_gguf(tmp_path, "llama", context=CONTEXT)
    engine = engine_of(path, cache=2**17)
    one_layer = engine.cache.pool.pages * PAGE * 2 * 2 * 16 * 4  # 2 for k and v, heads, dims, bytes
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    answers(engine)
    # What sixteen prompts need beside the pool is activations: a few MB, where a layer of the pool has 32.
    assert mx.get_peak_memory() - before < one_layer / 2


def test_a_forgotten_pass_leaves_no_trace(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "llama")) as checkpoint:
        config = config_of(checkpoint)
    pool = BuiltinPool(config, 4, PAGE, mx.float32)
    rows = mx.ones((8, 2 * 16))

    def described() -> tuple[BuiltinOps, mx.array]:
        ops = BuiltinOps(config, pool, Batch.of([Span([1] * 8, 0, [2], True)]), mx.float32)
        return ops, ops.attend(0, mx.ones((8, 4 * 16)), rows, rows, None)

    clean = pool.read(2)
    described()
    assert pool.read(2) == clean
    ops, mixed = described()
    other, _ = described()
    ops.begin()
    mx.eval(mixed)
    assert pool.read(2) != clean
    assert other.stale


def test_pages_that_change_under_a_described_pass_make_it_be_described_anew(tmp_path: Path) -> None:
    """As when a page arrives from the disk in between."""
    path = write_gguf(tmp_path, "llama", context=CONTEXT)
    engine = engine_of(path)

    def disturbed(engine: Engine) -> tuple[Delta, ...]:
        deltas = ahead(engine)
        engine.cache._store.copy(127, 126)  # nobody holds those
        return deltas

    assert answers(engine, disturbed).tokens == answers(engine_of(path)).tokens
