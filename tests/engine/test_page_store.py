"""Laws of pages as bytes: what is read, written and copied is the same content, to the bit and to attention."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from engine.load import CPU_KV, KV
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import AttentionShape, ModelConfig, config_of
from models.llama import Llama
from models.rope import Rope
from quant.open import open_checkpoint
from tests.tiny_models import write_gguf

PAGES = 8
PROMPT = np.random.default_rng(4).integers(5, 300, 80).tolist()


class Native:
    """A tiny model on the CPU device, with its pool."""

    def __init__(self, path: Path, dtype: mx.Dtype) -> None:
        with open_checkpoint(path) as checkpoint:
            config = config_of(checkpoint)
            self._model = Llama.load(config, checkpoint, NativeLoader())
        self.pool = NativePool(config, PAGES, PAGES * PAGE, dtype)

    def logits(self, tokens: list[int], past: int, pages: list[int]) -> bytes:
        batch = Batch.of([Span(tokens, past, pages, wants_logits=True)])
        return np.array(self._model.forward(NativeOps(self._model.config, self.pool, batch))).tobytes()


class Builtin:
    """The same by MLX's kernels."""

    def __init__(self, path: Path, dtype: mx.Dtype) -> None:
        with open_checkpoint(path) as checkpoint:
            config = config_of(checkpoint)
            self._model = Llama.load(config, checkpoint, BuiltinLoader(mx.float32))
        self.pool = BuiltinPool(config, PAGES, PAGE, dtype)

    def logits(self, tokens: list[int], past: int, pages: list[int]) -> bytes:
        batch = Batch.of([Span(tokens, past, pages, wants_logits=True)])
        ops = BuiltinOps(self._model.config, self.pool, batch, mx.float32)
        logits = self._model.forward(ops)
        ops.begin()
        return np.array(logits.astype(mx.float32)).tobytes()


Made = Callable[[], Native | Builtin]


SIDES: dict[str, Callable[[Path, mx.Dtype], Native | Builtin]] = {"native": Native, "builtin": Builtin}


@pytest.fixture(params=[f"native {kv}" for kv in CPU_KV] + [f"builtin {kv}" for kv in KV])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    side, dtype = SIDES[request.param.split()[0]], CPU_KV[request.param.split()[1]]
    path = write_gguf(tmp_path, "llama")
    return lambda: side(path, dtype)


def test_a_page_that_was_written_is_read_as_the_same_bytes(make: Made) -> None:
    pool = make().pool
    rng = np.random.default_rng(0)
    contents = [rng.bytes(pool.page_bytes) for _ in range(PAGES)]
    for page in (3, 0, 7, 1, 2, 6, 5, 4):
        pool.write(page, contents[page])
    assert [pool.read(page) for page in range(PAGES)] == contents


def test_a_copy_has_the_same_bytes_and_changes_no_other_page(make: Made) -> None:
    pool = make().pool
    rng = np.random.default_rng(1)
    contents = [rng.bytes(pool.page_bytes) for _ in range(PAGES)]
    for page, content in enumerate(contents):
        pool.write(page, content)
    pool.copy(6, 2)
    contents[2] = contents[6]
    assert [pool.read(page) for page in range(PAGES)] == contents


def test_attention_over_copied_pages_gives_the_same_bits(make: Made) -> None:
    side = make()
    side.logits(PROMPT, 0, [0, 1, 2])
    for source, target in ((0, 5), (1, 7), (2, 3)):
        side.pool.copy(source, target)
    assert side.logits([9, 8], len(PROMPT), [5, 7, 3]) == side.logits([9, 8], len(PROMPT), [0, 1, 2])


def test_attention_over_pages_of_another_process_gives_the_same_bits(make: Made) -> None:
    """They are read there, and written into a pool that has seen nothing."""
    first, second = make(), make()
    first.logits(PROMPT, 0, [0, 1, 2])
    for page, elsewhere in ((0, 6), (1, 2), (2, 4)):
        second.pool.write(elsewhere, first.pool.read(page))
    assert second.logits([9], len(PROMPT), [6, 2, 4]) == first.logits([9], len(PROMPT), [0, 1, 2])


def test_a_copy_is_another_page(make: Made) -> None:
    """What is written into it later does not show in its source."""
    side = make()
    side.logits(PROMPT[:40], 0, [0, 1])
    side.pool.copy(1, 5)
    before = side.pool.read(1)
    side.logits([7] * 10, 40, [0, 5])
    assert side.pool.read(1) == before
    assert side.pool.read(5) != before


def test_what_is_no_page_is_refused(tmp_path: Path) -> None:
    pool = Native(write_gguf(tmp_path, "llama"), mx.float16).pool
    for page in (-1, PAGES):
        with pytest.raises(ValueError, match="outside of the pool"):
            pool.read(page)
        with pytest.raises(ValueError, match="outside of the pool"):
            pool.copy(0, page)
    for length in (0, pool.page_bytes - 1, pool.page_bytes + 1):
        with pytest.raises(ValueError, match="not the bytes of one page"):
            pool.write(0, bytes(length))


@pytest.mark.parametrize("native", [True, False], ids=["native", "builtin"])
def test_pages_are_copied_read_and_written_without_a_copy_of_the_pool(native: bool) -> None:
    shape = AttentionShape(8, 4, 64, 0.125, Rope(theta=10000.0, dims=64, interleaved=False), None)
    config = ModelConfig("llama", "memory", 32, 512, 2, 64, 1e-5, 64, shape, True, False, False)
    pages = 512
    pool = NativePool(config, pages, 64, mx.float16) if native else BuiltinPool(config, pages, PAGE, mx.float16)
    one_layer = pages * pool.page_bytes // 2

    def each() -> None:
        pool.copy(300, 7)
        pool.write(8, pool.read(7))

    each()  # the first may allocate what later ones reuse
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    each()
    assert mx.get_peak_memory() - before < one_layer / 4
