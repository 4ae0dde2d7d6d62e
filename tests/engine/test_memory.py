"""Laws of the memory plan: it fits or is refused with numbers, and what is not asked for is chosen to fit."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.load import CPU_KV
from engine.memory import (
    LEAST_CONTEXT,
    SHARE,
    USUAL_CONTEXT,
    _container,
    _linux,
    check_fits,
    copied_tokens,
    free_memory,
    memory_need,
    room_for,
    token_bytes,
)
from engine.messages import EngineSpec
from engine.native_ops import NativePool
from engine.pace import PREFILL
from kvcache.pages import PAGE
from models.config import AttentionShape, ModelConfig
from models.rope import Rope
from quant.errors import EngineError, NotEnoughMemory

GIB = 2**30
LLAMA_1B = ModelConfig(
    architecture="llama",
    name="Llama-3.2-1B",
    vocab=128256,
    width=2048,
    layers=16,
    ffn=8192,
    eps=1e-5,
    context=131072,
    attention=AttentionShape(32, 8, 64, 0.125, Rope(500000.0, 64, True), None),
    tied=True,
    qkv_bias=False,
    head_norms=False,
)
SPEC = EngineSpec(path="")


def test_a_token_of_llama_1b_takes_32_kib_in_half_precision() -> None:
    assert token_bytes(LLAMA_1B) == 32 * 1024
    assert token_bytes(LLAMA_1B, "f32") == 64 * 1024


def test_quantised_tokens_take_8_or_4_bits_and_a_scale_of_2_bytes_for_32_numbers() -> None:
    assert token_bytes(LLAMA_1B, "q8") == 2 * 16 * 8 * (64 + 2 * 2)
    assert token_bytes(LLAMA_1B, "q4") == 2 * 16 * 8 * (32 + 2 * 2)


@pytest.mark.parametrize("width", [16, 18, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("kv", ["f16", "bf16", "f32", "q8", "q4"])
def test_the_bytes_of_a_token_are_those_of_the_pages(kv: str, width: int) -> None:
    attention = AttentionShape(6, 3, width, 0.125, Rope(500000.0, 16, True), None)
    config = dataclasses.replace(LLAMA_1B, layers=2, attention=attention)
    pool = NativePool(config, 4, 64, CPU_KV[kv])
    assert PAGE * token_bytes(config, kv) == pool.page_bytes


@given(
    free=st.integers(0, 64 * GIB),
    context=st.none() | st.integers(1, 131072),
    cache=st.none() | st.integers(1, 500_000),
)
def test_a_room_fits_or_is_refused(free: int, context: int | None, cache: int | None) -> None:
    spec = msgspec.structs.replace(SPEC, context=context, cache_tokens=cache)
    try:
        room = room_for(LLAMA_1B, GIB, spec, free)
    except EngineError:
        return
    assert memory_need(LLAMA_1B, GIB, room.cache).total <= SHARE * free
    assert room.context <= room.cache
    assert room.cache % PAGE == 0
    assert context in (None, room.context)
    assert cache is None or cache <= room.cache < cache + PAGE


def test_what_is_not_asked_for_is_as_large_as_usual_if_it_fits_and_smaller_if_not() -> None:
    assert room_for(LLAMA_1B, GIB, SPEC, 64 * GIB).context == USUAL_CONTEXT
    assert LEAST_CONTEXT < room_for(LLAMA_1B, GIB, SPEC, 2 * GIB).context < USUAL_CONTEXT
    with pytest.raises(NotEnoughMemory, match=r"needs 1\.\d+ GiB \(weights 1\.00 GiB, .* and 1\.00 GiB are free"):
        room_for(LLAMA_1B, GIB, SPEC, GIB)


def test_a_context_that_was_asked_for_is_given_or_refused_but_never_cut() -> None:
    asked = msgspec.structs.replace(SPEC, context=100_000)
    assert room_for(LLAMA_1B, GIB, asked, 16 * GIB).context == 100_000
    with pytest.raises(NotEnoughMemory):
        room_for(LLAMA_1B, GIB, asked, 3 * GIB)
    with pytest.raises(EngineError, match="made for 131072"):
        room_for(LLAMA_1B, GIB, msgspec.structs.replace(SPEC, context=131073), 64 * GIB)
    with pytest.raises(EngineError, match="cache of 64"):
        room_for(LLAMA_1B, GIB, msgspec.structs.replace(SPEC, context=100, cache_tokens=50), 64 * GIB)


def test_what_fits_is_not_refused() -> None:
    check_fits(memory_need(LLAMA_1B, GIB, 1024), 2 * GIB)


def test_linux_says_what_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2048 kB\nMemAvailable:   1024 kB\nHugePages_Total:       0\n")
    assert _linux(meminfo) == 2**20


def test_a_container_leaves_its_limit_less_what_is_used_and_not_merely_cached(tmp_path: Path) -> None:
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 500\ninactive_file 200\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert _container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _container(tmp_path) > 2**60
    assert _container(tmp_path / "nowhere") > 2**60


def test_this_machine_has_memory() -> None:
    assert free_memory() > 2**20


def test_scratch_is_for_the_largest_pass_that_the_scheduler_plans() -> None:
    def rows(max_batch: int) -> float:
        without_logits = memory_need(LLAMA_1B, GIB, 0, max_batch=max_batch).scratch - 8 * max_batch * LLAMA_1B.vocab
        return without_logits / one_row

    one_row = 4 * (4 * LLAMA_1B.width + 4 * 32 * 64 + 3 * LLAMA_1B.ffn)
    assert rows(16) == PREFILL + 16
    assert rows(2 * PREFILL) == PREFILL + 2 * PREFILL


def test_prompts_on_the_cpu_beside_a_gpu_have_their_copies_counted() -> None:
    """A context of keys and values on the way, pages of one layer, panels of one layer."""
    free = 8 * GIB
    alone, beside = (room_for(LLAMA_1B, GIB, SPEC, free, 2, beside=beside) for beside in (False, True))
    assert beside.cache < alone.cache
    gathered = copied_tokens(LLAMA_1B, SPEC.max_batch, 2, beside=True) * beside.context
    need = memory_need(LLAMA_1B, GIB, beside.cache, SPEC.kv, SPEC.max_batch, gathered, beside=True)
    assert need.total <= SHARE * free
    attended = copied_tokens(LLAMA_1B, SPEC.max_batch, 2, beside=False) * beside.context
    without = memory_need(LLAMA_1B, GIB, beside.cache, SPEC.kv, SPEC.max_batch, attended)
    layer = beside.context * token_bytes(LLAMA_1B) // LLAMA_1B.layers
    assert need.scratch - without.scratch >= (LLAMA_1B.layers + 1) * layer + GIB // LLAMA_1B.layers
