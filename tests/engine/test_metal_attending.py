"""Attention's candidates on what the supervisor tries them with, the kernels run on the host."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch, Span
from engine.candidates import Floats
from engine.judging import fault_of
from engine.metal.attending import Attended, Attender, World, named, operation
from engine.metal.paging import members_of
from engine.metal.trials import Phase
from engine.supervisor import Supervisor
from engine.verdicts import Fate, Machine, VerdictFile
from models.config import AttentionShape
from models.rope import Rope
from tests.engine.metal_world import on_host

F16 = mx.float16


def attention(window: int | None = None, head_dim: int = 64) -> AttentionShape:
    rope = Rope(theta=10000.0, dims=head_dim, interleaved=False)
    return AttentionShape(4, 2, head_dim, 0.125, rope, window)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_mlx_is_within_the_bound_that_is_generous_to_it(phase: Phase, window: int | None, dtype: mx.Dtype) -> None:
    wanted = operation(attention(window), phase, dtype, dtype)
    assert fault_of(wanted.candidates[0], wanted.trials()) is None


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("window", "dtype"), [(None, mx.float16), (40, mx.bfloat16)], ids=str)
def test_ours_is_within_its_bound_and_keeps_a_rows_bits(phase: Phase, window: int | None, dtype: mx.Dtype) -> None:
    wanted = operation(attention(window), phase, dtype, dtype, on_host)
    assert [candidate.name for candidate in wanted.candidates] == ["mlx", "paged"]
    assert fault_of(wanted.candidates[1], wanted.spot()) is None
    if phase is Phase.DECODE:
        assert fault_of(wanted.candidates[1], wanted.trials()) is None


def test_a_head_size_that_ours_lacks_has_mlx_alone() -> None:
    assert [c.name for c in operation(attention(head_dim=72), Phase.DECODE, F16, F16).candidates] == ["mlx"]


def test_a_kernel_that_sees_one_token_too_few_is_found_out() -> None:
    wanted = operation(attention(), Phase.DECODE, F16, F16, on_host)
    paged = wanted.candidates[1]

    class Short(Attender):
        def result(self, trial: Attended) -> Floats:
            fewer = replace(trial, spans=tuple((b, max(past - 1, 0), n) for b, past, n in trial.spans))
            return super().result(fewer)

    assert isinstance(paged, Attender)
    found = fault_of(Short(paged.name, paged.shape, on_host), wanted.spot())
    assert found is not None
    assert found.fate is Fate.DIFFERS


def test_the_longest_context_of_a_trial_is_the_worlds_own() -> None:
    world = World(attention(), F16, F16, [3, 70])
    assert [len(pages) for pages in world.pages] == [1, 3]
    assert len({page for pages in world.pages for page in pages}) == 4
    assert np.isnan(np.array(world.pool.layers[0].astype(mx.float32))).any()


@pytest.mark.parametrize("phase", Phase)
def test_where_nothing_can_be_launched_mlx_is_chosen(phase: Phase) -> None:
    file = VerdictFile(None, Machine("a host", "0", "here"))
    finding = Supervisor(file).finding(operation(attention(), phase, F16, F16))
    assert finding.chosen == "mlx"
    assert finding.verdicts[1].fate is Fate.UNCOMPILED


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("window", [None, 4096])
def test_a_key_says_what_it_is_of(phase: Phase, window: int | None) -> None:
    wanted = operation(attention(window), phase, F16, mx.bfloat16)
    again = named(wanted.key)
    assert again.key == wanted.key
    assert [c.source for c in again.candidates] == [c.source for c in wanted.candidates]


@pytest.mark.parametrize(
    "key", ["", "product q4_k large float16", "attention decode 4/2x64 window 3 float8 over float16"]
)
def test_a_key_of_something_else_is_refused(key: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        named(key)


def test_a_span_is_of_the_class_that_it_says_however_many_tokens_it_brings() -> None:
    brings = ((2, False), (1, True), (3, True), (1, False))
    spans = [Span([1] * n, 5, [0], wants_logits=True, decodes=decodes) for n, decodes in brings]
    found = members_of(Batch.of(spans))
    assert found[Phase.DECODE].tolist() == [1, 2]
    assert found[Phase.PROMPT].tolist() == [0, 3]
