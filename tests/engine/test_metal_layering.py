"""What lies between products: MLX's and ours on what the supervisor tries them with, the kernels run on the host."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinPool
from engine.candidates import Floats
from engine.judging import fault_of
from engine.metal import layer
from engine.metal.attention import Call
from engine.metal.layer import Turns
from engine.metal.layering import Between, Gated, Layering, Normed, Subject, Trial, named, operation, settled
from engine.metal.ops import MetalOps
from engine.metal.tuning import COMMON
from engine.metal.weights import MetalLoader
from engine.supervisor import Supervisor
from engine.verdicts import Fate, Machine, VerdictFile
from kvcache.pages import PAGE
from models.config import ModelConfig, config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.engine.metal_world import Always, on_host
from tests.tiny_models import write_gguf, write_mlx

F16, BF16, F32 = mx.float16, mx.bfloat16, mx.float32
HALVES = Turns(4, 2, 64, 64, interleaved=False, head_norms=True)
PAIRS = Turns(3, 1, 80, 32, interleaved=True, head_norms=False)
SUBJECTS = [
    Subject("norm", F16, 128),
    Subject("norm", BF16, 1100),
    Subject("norm", F32, 64),
    Subject("gate", F16, 132),
    Subject("gate", BF16, 64),
    Subject("gate", F32, 64),
    Subject("rope", F16, turns=HALVES, kv=F16),
    Subject("rope", BF16, turns=PAIRS, kv=F16),
    Subject("rope", F32, turns=HALVES, kv=F32),
]
every = pytest.mark.parametrize("subject", SUBJECTS, ids=str)


@every
def test_mlx_is_within_the_bound_that_is_generous_to_it(subject: Subject) -> None:
    wanted = operation(subject)
    assert fault_of(wanted.candidates[0], [*wanted.trials(), *wanted.timed()[:2]]) is None


@every
def test_ours_is_within_its_bound_and_keeps_a_rows_bits(subject: Subject) -> None:
    wanted = operation(subject, on_host)
    assert [candidate.name for candidate in wanted.candidates] == ["mlx", "fused"]
    assert fault_of(wanted.candidates[1], [*wanted.trials(), *wanted.spot()]) is None


class Spoiled(Between):
    """Ours, with one number of the last row a little off."""

    def result(self, trial: Trial) -> Floats:
        found = super().result(trial)
        found[-1, -1] *= np.float32(1 + 2.0**-7)
        return found


@every
def test_a_number_that_is_a_little_off_is_found_out(subject: Subject) -> None:
    fused = operation(subject, on_host).candidates[1]
    assert isinstance(fused, Between)
    found = fault_of(Spoiled("fused", fused.kernels, fused.text), subject.trials())
    assert found is not None
    assert found.fate is Fate.DIFFERS


class Varying(Between):
    """Ours, with rows that have other bits alone."""

    def result(self, trial: Trial) -> Floats:
        found = super().result(trial)
        return found if len(found) > 1 else np.nextafter(found, np.float32(np.inf))


@every
def test_a_row_whose_bits_hang_on_its_batch_is_found_out(subject: Subject) -> None:
    """Though it is within its bound, where the bound has room for a unit of the last place."""
    fused = operation(subject, on_host).candidates[1]
    assert isinstance(fused, Between)
    found = fault_of(Varying("fused", fused.kernels, fused.text), [subject.trial("3 rows", 3)])
    assert found is not None
    assert found.fate is Fate.VARIES


@every
def test_a_key_says_what_it_is_of(subject: Subject) -> None:
    again = named(str(subject))
    assert again.key == str(subject)
    assert [c.source for c in again.candidates] == [c.source for c in operation(subject).candidates]


@pytest.mark.parametrize("key", ["", "layer norm 64 float8", "layer rope 4/2x64 float16", "product q4_k large float16"])
def test_a_key_of_something_else_is_refused(key: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        named(key)


def test_a_size_that_ours_lacks_has_mlx_alone() -> None:
    assert [c.name for c in operation(Subject("norm", F16, 66)).candidates] == ["mlx"]
    wide = Turns(1, 1, 512, 512, interleaved=False, head_norms=False)
    assert [c.name for c in operation(Subject("rope", F16, turns=wide)).candidates] == ["mlx"]


@every
def test_where_nothing_can_be_launched_mlx_is_chosen(subject: Subject) -> None:
    finding = Supervisor(VerdictFile(None, Machine("a host", "0", "here"))).finding(operation(subject))
    assert finding.chosen == "mlx"
    assert finding.verdicts[1].fate is Fate.UNCOMPILED


def test_another_source_is_another_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [operation(subject).candidates[1].source for subject in SUBJECTS]
    assert len(set(before)) == len(SUBJECTS)
    header = layer.NORM.header + "\n"
    for name in ("NORM", "ADD_NORM", "GATE", "ROPE"):
        monkeypatch.setattr(layer, name, replace(getattr(layer, name), header=header))
    after = [operation(subject).candidates[1].source for subject in SUBJECTS]
    assert not set(before) & set(after)


def test_trials_have_what_is_easily_wrong() -> None:
    """Gates that are shut, an outlier, a norm of the stream alone, the last position."""
    gates = [t.gate for t in Subject("gate", F16, 64).trials() if isinstance(t, Gated)]
    assert min(gate.min() for gate in gates) < -12
    norms = [t for t in Subject("norm", F16, 64).trials() if isinstance(t, Normed)]
    assert any(t.added is None for t in norms)
    assert max(float(np.abs(t.x).max()) for t in norms) > 30


class Side:
    """A loaded model whose products are MLX's, and what lies between them ours or MLX's."""

    def __init__(self, path: Path, layering: Callable[[ModelConfig], Layering], dtype: mx.Dtype = F32) -> None:
        self.dtype = dtype
        with open_checkpoint(path) as checkpoint:
            self.config = config_of(checkpoint)
            self.model = Llama.load(self.config, checkpoint, MetalLoader(dtype, Always("mlx"), on_host))
        self.pool = BuiltinPool(self.config, 16, PAGE, dtype)
        self.layering = layering(self.config)

    def step(self, *spans: Span) -> Floats:
        ops = MetalOps(self.config, self.pool, Batch.of(spans), self.dtype, layering=self.layering)
        logits = self.model.forward(ops).astype(F32)
        ops.begin()
        return np.array(logits)


def chosen(name: str) -> Callable[[ModelConfig], Layering]:
    return lambda config: settled(Always(name), config, F32, F32, on_host)[0]


TOKENS = np.random.default_rng(5).integers(0, 320, 100).tolist()
PASSES = [
    [Span(TOKENS[:9], 0, [3], True), Span(TOKENS[40:43], 0, [5], True), Span(TOKENS[60:61], 0, [6], True)],
    [Span(TOKENS[9:10], 9, [3], True), Span(TOKENS[43:47], 3, [5], False), Span(TOKENS[61:62], 1, [6], True)],
    [Span(TOKENS[10:11], 10, [3], False)],
    [Span(TOKENS[11:12], 11, [3], True), Span(TOKENS[47:48], 7, [5], True)],
]


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "qwen2":
        return write_mlx(tmp_path, "qwen2", bits=4, layers=2)
    return write_gguf(tmp_path, request.param, kind="q4_k", layers=2)


def test_a_model_with_ours_between_its_products_gives_the_logits_of_mlx(path: Path) -> None:
    """Sums over 128 to 512 values in another order differ by some units in the last place of logits near 8."""
    ours, theirs = Side(path, chosen("fused")), Side(path, chosen("mlx"))
    assert ours.layering.norm
    assert ours.layering.gate
    assert ours.layering.rope
    for spans in PASSES:
        np.testing.assert_allclose(ours.step(*spans), theirs.step(*spans), rtol=0, atol=256 * 2.0**-23 * 8)
    kept, wanted = ours.pool.layers[0], theirs.pool.layers[0]
    close = 64 * 2.0**-23 * float(mx.abs(wanted).max())  # sums over 128 values
    np.testing.assert_allclose(np.array(kept), np.array(wanted), rtol=0, atol=close)


def test_a_norm_makes_the_sum_and_nobody_else_does(tmp_path: Path) -> None:
    """But for the rows that are picked in the last layer."""
    launched: list[str] = []
    sums: list[tuple[mx.array, mx.array]] = []  # what a norm was given, and what it made of it

    def noting(call: Call, inputs: Sequence[mx.array]) -> list[mx.array]:
        made = on_host(call, inputs)
        launched.append(call.kernel.name)
        if call.kernel.name == "layer_add_norm":
            sums.append((inputs[0], made[0]))
        return made

    path = write_gguf(tmp_path, "llama", kind="q4_k", layers=2)
    side = Side(path, lambda config: settled(Always("fused"), config, F32, F32, noting)[0])
    side.step(*PASSES[0])
    a_layer = ["layer_rope", "layer_add_norm", "layer_gate", "layer_add_norm"]
    assert launched == ["layer_norm", *a_layer, *a_layer]
    (_, first), (second, _), (_, picked), (last, _) = sums
    assert second is first
    assert last is picked


def test_a_norm_adds_only_what_belongs_to_its_stream(tmp_path: Path) -> None:
    """Rows that are picked, or any others, are normed as they are, whatever was added to another stream before."""
    side = Side(write_gguf(tmp_path, "llama", kind="q4_k", layers=1), chosen("fused"))

    def logits(*, behind_another: bool) -> Floats:
        batch = Batch.of([Span(TOKENS[:2], 0, [1], True)])
        ops = MetalOps(side.config, side.pool, batch, F32, layering=side.layering)
        x = ops.embed(side.model.embedding)
        if behind_another:
            ops.add_mlp(x, side.model.layers[0].mlp)
        return np.array(ops.logits(x[1:], side.model.norm, side.model.head))

    np.testing.assert_array_equal(logits(behind_another=True), logits(behind_another=False))


def test_everything_that_was_chosen_is_named(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "qwen3", kind="q4_k", layers=1)) as checkpoint:
        config = config_of(checkpoint)
    _, chosen = settled(Always("fused"), config, F16, BF16, on_host)
    shape = config.attention
    assert list(chosen) == [
        f"layer norm {config.width} float16",
        f"layer gate {config.ffn} float16",
        f"layer rope {shape.heads}/{shape.kv_heads}x{shape.head_dim} turns {shape.rope.dims} halves normed"
        " float16 over bfloat16",
    ]
    assert all(value.startswith("fused ") for value in chosen.values())
    assert all(named(key).key == key for key in chosen)


def test_what_a_fresh_machine_tries_is_known() -> None:
    keys = [key for key in COMMON if key.startswith("layer ")]
    assert [key.split(" ")[1] for key in keys] == ["norm", "gate", "rope"]
    assert [named(key).key for key in keys] == keys
    assert all(len(named(key).candidates) == 2 for key in keys)
