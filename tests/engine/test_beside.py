"""The CPU's passes beside a GPU: the native engine's bits, whatever the chunks, one layer's panels at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine import _native, beside, borrowed
from engine.batch import Batch, Span
from engine.beside import Beside
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from engine.metal.weights import MetalLoader
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from models.ops import Linear, Loader, Matrix
from quant.open import open_checkpoint
from tests.engine.metal_world import Always, on_host
from tests.tiny_models import write_gguf, write_mlx

PAGES = 16
TOKENS = np.random.default_rng(3).integers(5, 300, 150).tolist()
Floats = npt.NDArray[np.float32]


def loaded(path: Path, loader: Loader) -> Llama:
    with open_checkpoint(path) as checkpoint:
        return Llama.load(config_of(checkpoint), checkpoint, loader)


class World:
    """A model as a GPU has it, its pool, and the CPU beside."""

    def __init__(self, path: Path, dtype: mx.Dtype, loader: Loader) -> None:
        self.path, self.dtype = path, dtype
        self.model = loaded(path, loader)
        self.pool = BuiltinPool(self.model.config, PAGES, PAGE, dtype)
        self.beside = Beside(self.model, PAGES * PAGE, dtype)

    def span(self, tokens: Sequence[int], past: int, pages: Sequence[int]) -> Span:
        return Span(tokens, past, pages, wants_logits=False)

    def compute(self, *spans: Span) -> None:
        """A pass, whose keys and values then lie in the pool."""
        self.beside.start(spans, [self.pool.snapshot(span.pages, span.past) for span in spans])
        for span, parts in zip(spans, self.beside.take(), strict=True):
            self.pool.put(span.pages, span.past, parts)

    def kept(self, pages: Sequence[int], tokens: int) -> list[bytes]:
        return [np.array(part.view(mx.uint8)).tobytes() for part in self.pool.snapshot(pages, tokens)]

    def native(self, tokens: Sequence[int]) -> list[bytes]:
        """What the native engine has in its pages after the same tokens, in one pass."""
        model, shape = loaded(self.path, NativeLoader()), self.model.config.attention
        pages = np.arange(-(-len(tokens) // PAGE), dtype=np.int32)
        pool = NativePool(model.config, len(pages), len(tokens), self.dtype)
        mx.eval(model.forward(NativeOps(model.config, pool, Batch.of([Span(tokens, 0, pages.tolist(), False)]))))
        took = [_native.take_tokens(p, pages, 0, len(tokens), shape.kv_heads, shape.head_dim) for p in pool.layers]
        return [np.array(part.view(mx.uint8)).tobytes() for part in took]


def dense(folder: Path, dtype: mx.Dtype) -> World:
    return World(write_gguf(folder, "llama", layers=3), dtype, BuiltinLoader(mx.float32))


def affine(folder: Path, dtype: mx.Dtype) -> World:
    return World(write_mlx(folder, "qwen2", bits=4), dtype, BuiltinLoader(mx.float32))


def normed(folder: Path, dtype: mx.Dtype) -> World:
    return World(write_mlx(folder, "qwen3"), dtype, BuiltinLoader(mx.float32))


def windowed(folder: Path, dtype: mx.Dtype) -> World:
    return World(write_mlx(folder, "mistral", window=37), dtype, BuiltinLoader(mx.float32))


def blocks(folder: Path, dtype: mx.Dtype) -> World:
    loader = MetalLoader(mx.float32, Always("blocks"), on_host)
    return World(write_gguf(folder, "llama", kind="q4_k", tied=True), dtype, loader)


WORLDS = (dense, affine, normed, windowed, blocks)


@contextmanager
def opened(make: Callable[[Path, mx.Dtype], World], folder: Path, dtype: mx.Dtype = mx.float16) -> Iterator[World]:
    world = make(folder, dtype)
    try:
        yield world
    finally:
        world.beside.close()


@pytest.mark.parametrize("make", WORLDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("chunks", [(150,), (1, 40, 31, 78), (64, 86), (33, 1, 116)], ids=str)
def test_keys_and_values_are_the_native_engines_for_any_chunks(
    make: Callable[[Path, mx.Dtype], World], chunks: Sequence[int], tmp_path: Path
) -> None:
    pages = [3, 7, 1, 0, 9]
    with opened(make, tmp_path) as world:
        past = 0
        for count in chunks:
            world.compute(world.span(TOKENS[past : past + count], past, pages))
            past += count
        assert world.kept(pages, 150) == world.native(TOKENS)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_so_they_are_in_every_type_of_pages(dtype: mx.Dtype, tmp_path: Path) -> None:
    with opened(affine, tmp_path, dtype) as world:
        world.compute(world.span(TOKENS[:45], 0, [5, 2, 8]))
        world.compute(world.span(TOKENS[45:77], 45, [5, 2, 8]))
        assert world.kept([5, 2, 8], 77) == world.native(TOKENS[:77])


def test_spans_of_one_pass_have_what_each_has_alone(tmp_path: Path) -> None:
    with opened(dense, tmp_path) as world:
        world.compute(world.span(TOKENS[:40], 0, [4, 11]))
        world.compute(
            world.span(TOKENS[90:97], 0, [2]),
            world.span(TOKENS[40:75], 40, [4, 11, 6]),
            world.span(TOKENS[100:101], 0, [3]),
        )
        assert world.kept([4, 11, 6], 75) == world.native(TOKENS[:75])
        assert world.kept([2], 7) == world.native(TOKENS[90:97])
        assert world.kept([3], 1) == world.native(TOKENS[100:101])


def test_the_gpu_goes_on_from_them_as_from_its_own(tmp_path: Path) -> None:
    """float32 on both sides, so each logit of each side is within 200 roundings of the largest: the bound of
    test_native_ops, twice."""

    def logits(world: World, tokens: Sequence[int], past: int, pages: Sequence[int]) -> Floats:
        ops = BuiltinOps(world.model.config, world.pool, Batch.of([Span(tokens, past, pages, True)]), mx.float32)
        out = world.model.forward(ops)
        ops.begin()
        return np.array(out)

    for make in (dense, normed, windowed):
        (tmp_path / make.__name__).mkdir()
        with opened(make, tmp_path / make.__name__, mx.float32) as world:
            logits(world, TOKENS[:70], 0, [0, 1, 2])
            want = logits(world, TOKENS[70:71], 70, [0, 1, 2])
            world.compute(world.span(TOKENS[:30], 0, [8, 5, 6]))
            world.compute(world.span(TOKENS[30:70], 30, [8, 5, 6]))
            got = logits(world, TOKENS[70:71], 70, [8, 5, 6])
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * 200 * 2**-24 * float(np.abs(want).max()))


def test_a_snapshot_is_of_the_moment_and_what_is_put_makes_passes_stale(tmp_path: Path) -> None:
    with opened(dense, tmp_path) as world:
        world.compute(world.span(TOKENS[:40], 0, [4, 11]))
        described = BuiltinOps(
            world.model.config, world.pool, Batch.of([Span([7], 40, [4, 11], wants_logits=True)]), mx.float32
        )
        snapshot = world.pool.snapshot([4, 11], 40)
        before = [np.array(part) for part in snapshot]
        assert not described.stale
        world.pool.put([4, 11], 3, [mx.ones_like(part[:35]) for part in snapshot])
        assert described.stale
        for part, was, now in zip(snapshot, before, world.pool.snapshot([4, 11], 40), strict=True):
            np.testing.assert_array_equal(np.array(part), was)
            np.testing.assert_array_equal(np.array(now)[3:38], np.ones_like(was[3:38]))
            np.testing.assert_array_equal(np.array(now)[[0, 1, 2, 38, 39]], was[[0, 1, 2, 38, 39]])


def test_what_is_put_copies_no_pool(tmp_path: Path) -> None:
    with opened(dense, tmp_path) as world:
        pool = BuiltinPool(world.model.config, 4096, PAGE, mx.float16)
        parts = pool.snapshot([9], 20)
        pool.put([4000, 7], 20, parts)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        pool.put([4000, 7], 20, parts)
        assert mx.get_peak_memory() - before < pool.layers[0].nbytes / 4


def wide(folder: Path, dtype: mx.Dtype) -> World:
    """A vocabulary that outweighs the layers, and of these more than a few."""
    loader = MetalLoader(mx.float32, Always("blocks"), on_host)
    return World(write_gguf(folder, "llama", kind="q4_k", layers=6, vocab=4000), dtype, loader)


def test_at_no_time_are_there_more_panels_than_one_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[_native.Room] = []
    lone: list[int] = []
    pack = _native.pack_arrays

    def counted(
        planes: Sequence[mx.array], name: str, rows: int, cols: int, room: _native.Room | None = None
    ) -> _native.Panels:
        made = pack(planes, name, rows, cols, room)
        lone.append(0 if room else made.nbytes)
        rooms.extend([room] if room else [])
        return made

    monkeypatch.setattr(_native, "pack_arrays", counted)
    with opened(wide, tmp_path) as world:
        world.compute(world.span(TOKENS[:50], 0, [0, 1]))
        layer = world.model.layers[0]
        matrices = [*(getattr(layer.attention, name) for name in ("q", "k", "v", "out")), layer.mlp.gate, layer.mlp.up]
        whole = sum(borrowed.borrowed(linear.matrix).nbytes for linear in [*matrices, layer.mlp.down])
        assert max(room.nbytes for room in rooms) <= whole
        assert 0 < sum(lone[:-7]) < whole, "of the embedding only rows were packed, and nothing else stands outside"
        assert len(rooms) == 6 * 7 - 3, "each matrix once; nobody wants what the last layer's rows become"


def test_the_head_is_not_looked_at(tmp_path: Path) -> None:
    class Nothing:
        rows, cols, nbytes = 320, 64, 0

    with opened(dense, tmp_path) as world:
        headless = replace(world.model, head=Linear(Nothing()))
        other = Beside(headless, PAGES * PAGE, world.dtype)
        other.start([world.span(TOKENS[:9], 0, [0])], [world.pool.snapshot([], 0)])
        (parts,) = other.take()
        other.close()
        assert [np.array(part.view(mx.uint8)).tobytes() for part in parts] == world.native(TOKENS[:9])


class Gate:
    """Stands in for `borrowed`: matrices come one by one, and of the one named by its number something else comes."""

    def __init__(self, at: int, then: Callable[[], None]) -> None:
        self.seen, self._at, self._then = 0, at, then

    def __call__(self, matrix: Matrix, room: _native.Room | None = None) -> _native.Panels:
        self.seen += 1
        if self.seen == self._at:
            self._then()
        return borrowed.borrowed(matrix, room)


def test_what_was_abandoned_stops_between_layers_and_the_next_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, abandoned = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        abandoned.wait()

    with opened(dense, tmp_path) as world:
        gate = Gate(2, hold)
        monkeypatch.setattr(beside, "borrowed", gate)
        past = [world.pool.snapshot([], 0)]
        world.beside.start([world.span(TOKENS[:60], 0, [0, 1])], past)
        reached.wait()
        assert world.beside.running
        world.beside.abandon()
        assert not world.beside.running
        world.beside.start([world.span(TOKENS[60:90], 0, [0])], past)
        assert not world.beside.done
        abandoned.set()
        (parts,) = world.beside.take()
        assert gate.seen == 4 + 3 * 7 - 3, "of the first pass one layer's attention, of the second everything"
        assert [np.array(part.view(mx.uint8)).tobytes() for part in parts] == world.native(TOKENS[60:90])


def test_what_a_pass_throws_is_thrown_where_it_is_taken_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise MemoryError("no room for panels")

    with opened(dense, tmp_path) as world:
        monkeypatch.setattr(beside, "borrowed", Gate(9, fault))
        world.beside.start([world.span(TOKENS[:60], 0, [0, 1])], [world.pool.snapshot([], 0)])
        with pytest.raises(MemoryError, match="no room for panels"):
            world.beside.take()
        assert not world.beside.running
        world.compute(world.span(TOKENS[:60], 0, [0, 1]))
        assert world.kept([0, 1], 60) == world.native(TOKENS[:60])


def test_whoever_waits_is_told_when_it_is_over(tmp_path: Path) -> None:
    with opened(dense, tmp_path) as world:
        assert not world.beside.done
        world.beside.start([world.span(TOKENS[:60], 0, [0, 1])], [world.pool.snapshot([], 0)])
        assert world.beside.wait(60)
        assert world.beside.done
        assert world.beside.running
        world.beside.take()
        assert not world.beside.done


def test_the_streams_of_other_threads_stay_what_they_were(tmp_path: Path) -> None:
    stream, device = mx.default_stream(mx.Device(mx.cpu)), mx.default_device()
    with opened(dense, tmp_path) as world:
        world.compute(world.span(TOKENS[:5], 0, [0]))
        assert (mx.default_stream(mx.Device(mx.cpu)), mx.default_device()) == (stream, device)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_tokens_out_of_pages_are_those_that_were_put_and_others_stay(dtype: mx.Dtype) -> None:
    heads, width = 3, 20
    pages = _native.unwritten_pages(8, _native.page_elements(heads, width, dtype), dtype)
    table = np.array([5, 0, 7, 2], np.int32)
    rng = np.random.default_rng(0)

    def some(count: int) -> mx.array:
        return mx.array(rng.standard_normal((count, 2, heads, width)).astype(np.float32)).astype(dtype)

    def taken(first: int, count: int) -> Floats:
        return np.array(_native.take_tokens(pages, table, first, count, heads, width).astype(mx.float32))

    whole, part = some(128), some(61)
    mx.eval(whole, part)
    _native.put_tokens(pages, table, 0, whole)
    _native.put_tokens(pages, table, 33, part)
    want = np.concatenate([np.array(each.astype(mx.float32)) for each in (whole[:33], part, whole[94:])])
    for first, count in ((0, 128), (31, 3), (40, 1), (33, 61), (7, 0)):
        np.testing.assert_array_equal(taken(first, count), want[first : first + count])


def test_tokens_that_fit_no_page_are_refused() -> None:
    pages = _native.unwritten_pages(2, _native.page_elements(2, 16, mx.float16), mx.float16)
    coded = _native.unwritten_pages(2, _native.page_elements(2, 16, mx.int8), mx.int8)
    tokens = mx.zeros((3, 2, 2, 16), mx.float16)
    mx.eval(tokens)
    for into, table, first, given in (
        (pages, [0], 30, tokens),
        (pages, [2], 0, tokens),
        (pages, [-1], 0, tokens),
        (pages, [0], -1, tokens),
        (pages, [0], 0, tokens.astype(mx.float32)),
        (pages, [0], 0, tokens[..., :8]),
        (coded, [0], 0, tokens),
    ):
        with pytest.raises(ValueError, match="tokens of pages"):
            _native.put_tokens(into, np.array(table, np.int32), first, given)
