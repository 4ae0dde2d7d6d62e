"""A model whose matrices are multiplied by our kernels, run on the host, answers as over MLX's own."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from engine.engine import Engine, Limits
from engine.messages import Sampling, Submit
from engine.metal import layering
from engine.metal.attending import settled
from engine.metal.ops import MetalOps
from engine.metal.products import Held, Subject, operation
from engine.metal.trials import NAMES
from engine.metal.weights import MetalLoader
from engine.supervisor import Supervisor
from engine.verdicts import Machine, VerdictFile
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.engine.metal_world import Always, on_host
from tests.tiny_models import write_gguf, write_mlx

F32 = mx.float32
TOKENS = np.random.default_rng(5).integers(0, 320, 100).tolist()
# Sums over 128 to 512 values in another order differ by some units in the last place of logits near 8.
CLOSE = 256 * float(np.finfo(np.float32).eps) * 8


class Side:
    """A loaded model and its pool; with the name of a way, that way multiplies wherever it can."""

    def __init__(self, path: Path, way: str | None, dtype: mx.Dtype = F32) -> None:
        self.loader = MetalLoader(dtype, Always(way), on_host) if way else BuiltinLoader(dtype)
        with open_checkpoint(path) as checkpoint:
            self.config = config_of(checkpoint)
            self.model = Llama.load(self.config, checkpoint, self.loader)
        self.pool, self.dtype = BuiltinPool(self.config, 16, PAGE, dtype), dtype
        self.attending = settled(Always("paged"), self.config.attention, dtype, dtype, on_host)[0] if way else None

    def ops_of(self, batch: Batch) -> BuiltinOps:
        if self.attending is None:
            return BuiltinOps(self.config, self.pool, batch, self.dtype)
        between = layering.settled(Always("fused"), self.config, self.dtype, self.dtype, on_host)[0]
        return MetalOps(self.config, self.pool, batch, self.dtype, self.attending, between)

    def step(self, *spans: Span) -> npt.NDArray[np.float32]:
        ops = self.ops_of(Batch.of(spans))
        logits = self.model.forward(ops).astype(F32)
        ops.begin()
        return np.array(logits)

    def answers(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        limits = Limits(context=256, vocab=self.config.vocab, max_batch=4)
        engine = Engine(self.model, self.ops_of, PageCache(16, self.pool), limits)
        for i, prompt in enumerate(prompts):
            engine.submit(Submit(i, prompt, Sampling(max_tokens=length, temperature=0.0)))
        found: list[list[int]] = [[] for _ in prompts]
        while engine.busy:
            for delta in engine.step():
                found[delta.id] += [sampled.token for sampled in delta.tokens]
        return found


@pytest.fixture(params=["q4_k-blocks", "4bit-few+many"])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Side, Side]:
    kind, way = request.param.split("-")
    if kind == "4bit":
        path = write_mlx(tmp_path, "qwen2", bits=4, layers=1)
    else:
        path = write_gguf(tmp_path, "llama", kind=kind, layers=1, tied=True)
    return Side(path, way), Side(path, None)


def test_a_pass_of_prompts_and_answers_gives_the_logits_of_mlx(sides: tuple[Side, Side]) -> None:
    for spans in (
        [Span(TOKENS[:9], 0, [3], True), Span(TOKENS[40:43], 0, [5], True), Span(TOKENS[60:61], 0, [6], True, True)],
        [Span(TOKENS[9:10], 9, [3], True, True), Span(TOKENS[43:47], 3, [5], False), Span([8], 1, [6], True, True)],
        [Span(TOKENS[10:11], 10, [3], False, True)],
        [Span(TOKENS[11:12], 11, [3], True, True), Span(TOKENS[47:48], 7, [5], True)],
        [Span(TOKENS[12:17], 12, [3], True, True), Span(TOKENS[48:49], 8, [5], False)],
    ):
        ours, theirs = (side.step(*spans) for side in sides)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


def test_a_sequence_has_the_same_bits_alone_with_others_and_wherever_its_pages_lie(tmp_path: Path) -> None:
    side = Side(write_gguf(tmp_path, "llama", kind="q4_k", layers=2), "blocks")
    assert side.attending is not None
    assert side.attending.decode is not None
    assert side.attending.prompt is not None
    next_one = Span(TOKENS[35:36], 35, [0, 1], True, True)
    alone = [side.step(Span(TOKENS[:35], 0, [0, 1], True)), side.step(next_one)]
    elsewhere = replace(next_one, pages=[3, 2])
    together = [
        side.step(Span(TOKENS[50:53], 0, [4], True), Span(TOKENS[:35], 0, [3, 2], True)),
        side.step(Span(TOKENS[53:55], 3, [4], True), elsewhere, Span([7], 0, [5], True)),
    ]
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0].view(np.uint32), many[1].view(np.uint32))


def test_a_pass_of_which_every_row_is_picked_still_knows_its_prompts(tmp_path: Path) -> None:
    """Two prompts of one token each have as many rows picked as they bring."""
    side = Side(write_gguf(tmp_path, "llama", kind="q4_k", layers=2), "blocks")
    long = side.step(Span(TOKENS[:2], 0, [0], True))
    side.step(Span(TOKENS[:1], 0, [1], False))
    short = side.step(Span(TOKENS[1:2], 1, [1], True), Span(TOKENS[5:6], 0, [2], True))
    np.testing.assert_array_equal(long[0].view(np.uint32), short[0].view(np.uint32))


def test_greedy_answers_are_those_over_mlx(sides: tuple[Side, Side]) -> None:
    ours, theirs = (side.answers([TOKENS[:3], TOKENS[10:19]], 4) for side in sides)
    assert ours == theirs
    assert sum(map(len, ours)) == 8


def test_every_matrix_is_held_as_it_was_chosen(tmp_path: Path) -> None:
    side = Side(write_gguf(tmp_path, "llama", kind="q4_k", layers=1), "blocks")
    assert isinstance(side.loader, MetalLoader)
    assert list(side.loader.chosen) == ["product q4_k small float32"]
    assert side.loader.chosen["product q4_k small float32"].startswith("blocks ")
    head = side.model.head.matrix
    assert isinstance(head, Held)
    assert head.builtin is None
    assert head.nbytes == 320 * 144  # the file's blocks, and nothing beside them


def test_what_a_way_does_not_take_mlx_multiplies(tmp_path: Path) -> None:
    side = Side(write_gguf(tmp_path, "llama", kind="f32", width=60, ffn=52, head_dim=16, layers=1), "few+many")
    for matrix, ours in (
        (side.model.layers[0].mlp.down.matrix, False),
        (side.model.layers[0].attention.out.matrix, True),
    ):
        assert isinstance(matrix, Held)
        assert (matrix.few is not None) == ours


def test_a_supervisor_that_finds_ours_slower_leaves_everything_to_mlx(tmp_path: Path) -> None:
    class Clock:
        """Each reading is later, so that bursts of few launches seem long."""

        now = 0.0

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    file = VerdictFile(tmp_path, Machine("a host", "0", "here"))
    path = write_gguf(tmp_path, "llama", kind="f16", layers=1)
    with open_checkpoint(path) as checkpoint:
        tensor = next(t for t in checkpoint.tensors.values() if t.format.name == "f16")
        wanted = operation(Subject.of(tensor, mx.float16))  # launched for a GPU that is not here: each of ours throws
        finding = Supervisor(file, Clock()).finding(wanted)
    assert finding.chosen == "mlx"
    assert {v.fate.value for v in finding.verdicts[1:]} == {"does not compile"}
    assert NAMES[mx.float16] in wanted.key
