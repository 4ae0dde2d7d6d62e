"""Laws of a GPU's memory, over Macs of 8 to 192 GB: a model fits the working set or is refused."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.command_buffers import environment, settings
from engine.device_memory import LEAST_CACHE, GPUMemory
from engine.load import GATHERED, load
from engine.memory import LEAST_CONTEXT, SHARE, Need, memory_need, room_for
from engine.messages import EngineSpec
from engine.placement import Asked
from quant.errors import EngineError, NotEnoughMemory
from tests.engine.test_memory import LLAMA_1B
from tests.tiny_models import write_gguf

GIB = 2**30
MACS = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192)


def mac(gigabytes: int) -> dict[str, str | int]:
    """As Metal describes one: a working set of two thirds, of three quarters from 36 GB on."""
    working = gigabytes * GIB * 3 // 4 if gigabytes >= 36 else gigabytes * GIB * 2 // 3
    return {
        "device_name": "Apple M",
        "architecture": "applegpu_g13g",
        "memory_size": gigabytes * GIB,
        "max_recommended_working_set_size": working,
        "max_buffer_length": working * 3 // 4,
        "resource_limit": 499000,
    }


@pytest.mark.parametrize("gigabytes", MACS)
@given(weights=st.integers(2**20, 200 * GIB), kv=st.none() | st.integers(2**20, 200 * GIB))
def test_what_is_not_refused_fits_in_the_working_set(gigabytes: int, weights: int, kv: int | None) -> None:
    memory = GPUMemory.of(mac(gigabytes))
    spec = EngineSpec(path="", kv_memory=kv)
    try:
        room = room_for(LLAMA_1B, weights, spec, memory.free, GATHERED)
    except EngineError:
        return
    need = memory_need(LLAMA_1B, weights, room.cache, gathered=GATHERED * 16 * room.context)
    assert need.total <= SHARE * memory.free
    limits = memory.limits(need)
    assert need.total <= limits.wired <= memory.free  # MLX refuses more
    assert limits.memory < memory.total
    assert limits.cache >= max(need.scratch, LEAST_CACHE)


@pytest.mark.parametrize(
    ("gigabytes", "weights", "fits"), [(8, 4, True), (8, 5, False), (16, 9, True), (192, 99, True)]
)
def test_models_that_fit_macs(gigabytes: int, weights: int, fits: bool) -> None:
    memory = GPUMemory.of(mac(gigabytes))
    if fits:
        assert room_for(LLAMA_1B, weights * GIB, EngineSpec(path=""), memory.free, GATHERED).context >= 1024
        return
    with pytest.raises(NotEnoughMemory, match=r"needs 5\.\d+ GiB \(weights 5\.00 GiB, .* and 5\.33 GiB are free"):
        room_for(LLAMA_1B, weights * GIB, EngineSpec(path=""), memory.free, GATHERED)


@given(free=st.integers(2 * GIB, 64 * GIB), copies=st.integers(0, 4))
def test_a_context_that_nobody_asked_for_is_as_long_as_the_copies_of_it_allow(free: int, copies: int) -> None:
    """And what fits without copies is never refused for them, unless not even the least context fits."""
    room = room_for(LLAMA_1B, GIB, EngineSpec(path=""), free)
    try:
        copied = room_for(LLAMA_1B, GIB, EngineSpec(path=""), free, copies)
    except NotEnoughMemory:
        least = memory_need(LLAMA_1B, GIB, LEAST_CONTEXT, gathered=copies * 16 * LEAST_CONTEXT)
        assert least.total > SHARE * free - 2**20
        return
    assert LEAST_CONTEXT <= copied.context <= room.context
    assert copied.cache <= room.cache


def test_a_layer_of_the_cache_is_one_buffer() -> None:
    memory = GPUMemory.of(mac(8))
    memory.check_pool(memory.largest)
    with pytest.raises(NotEnoughMemory, match=r"4\.00 GiB for each layer, and the GPU's largest buffer is 4\.00 GiB"):
        memory.check_pool(memory.largest + 1)


def test_cuda_says_it_by_other_names() -> None:
    memory = GPUMemory.of({"device_name": "H", "total_memory": 80 * GIB, "free_memory": 70 * GIB})
    assert (memory.total, memory.free, memory.largest) == (80 * GIB, 70 * GIB, 70 * GIB)


@pytest.mark.parametrize("info", [{}, {"memory_size": GIB}, {"memory_size": GIB, "free_memory": 0}])
def test_a_gpu_that_says_nothing_is_an_error(info: dict[str, str | int]) -> None:
    with pytest.raises(EngineError, match="does not say how much memory"):
        GPUMemory.of(info)


def test_small_needs_leave_mlx_some_buffers_to_keep() -> None:
    limits = GPUMemory.of(mac(8)).limits(Need(weights=1, kv=1, scratch=1))
    assert (limits.wired, limits.cache) == (3, LEAST_CACHE)


@pytest.mark.parametrize("name", ["Apple M1", "Apple M2 Ultra", "Apple M3 Max", "Apple M4 Pro"])
def test_command_buffers_are_long_where_that_was_measured_to_help(name: str) -> None:
    assert settings(name, 16 * GIB) == {"MLX_MAX_OPS_PER_BUFFER": "1000"}
    assert settings(name, 64 * GIB) == {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "400"}


@pytest.mark.parametrize("name", [None, "", "Apple M5", "Apple M5 Max", "Apple M10", "Apple M12 Pro", "AMD EPYC"])
def test_and_as_mlx_has_them_where_not(name: str | None) -> None:
    assert settings(name, 64 * GIB) == {}


def test_what_a_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.command_buffers.chip", lambda: "Apple M4")
    monkeypatch.setattr("engine.command_buffers.machine_memory", lambda: 16 * GIB)
    assert environment({}) == {"MLX_MAX_OPS_PER_BUFFER": "1000"}
    assert environment({"MLX_MAX_OPS_PER_BUFFER": "7"}) == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has settings")
def test_other_machines_are_left_alone() -> None:
    assert environment({}) == {}


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Loading takes this machine for a Mac of 8 GB; what MLX was told to do."""
    told: dict[str, int] = {}
    monkeypatch.setattr("engine.load._on_gpu", lambda device: True)
    monkeypatch.setattr(mx, "device_info", lambda: mac(8))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    for name in ("memory", "cache", "wired"):
        monkeypatch.setattr(mx, f"set_{name}_limit", lambda limit, name=name: told.update({name: limit}))
    return told


def test_mlx_is_told_its_limits_before_a_model_is_loaded(tmp_path: Path, as_gpu: dict[str, int]) -> None:
    loaded = load(EngineSpec(path=str(write_gguf(tmp_path, "llama", context=1024)), device="builtin"))
    assert loaded.device == "gpu"
    assert loaded.placement.where == "gpu"
    assert as_gpu["memory"] == mac(8)["max_recommended_working_set_size"]
    assert as_gpu["cache"] >= LEAST_CACHE
    pool = loaded.engine.cache.pool.pages * 32 * 2 * 2 * 2 * 16 * 2  # layers, k and v, heads, dims, bytes
    assert as_gpu["wired"] > pool


def test_a_model_that_a_gpu_cannot_hold_is_refused_before_mlx_is_told_anything(
    tmp_path: Path, as_gpu: dict[str, int]
) -> None:
    path = str(write_gguf(tmp_path, "llama", context=1024))
    with pytest.raises(NotEnoughMemory, match=r"5\.33 GiB are free"):
        load(EngineSpec(path=path, device="builtin", kv_memory=6 * GIB))
    assert as_gpu == {}


PLACED: tuple[tuple[Asked, str], ...] = (("gpu", "gpu"), ("cpu", "gpu+cpu-prefill"))


def test_beside_prompts_on_the_cpu_a_gpu_is_a_device_of_its_own(tmp_path: Path, as_gpu: dict[str, int]) -> None:
    """And keeps room for what they copy."""
    path = str(write_gguf(tmp_path, "llama", context=1024))
    wired = []
    for where, name in PLACED:
        loaded = load(EngineSpec(path=path, device="builtin", prefill=where, cache_tokens=2048))
        assert (loaded.device, loaded.placement.where) == (name, where)
        wired.append(as_gpu["wired"])
        loaded.engine.close()
    assert wired[1] - wired[0] > 1024 * 3 * 2 * 2 * 16 * 2  # a context of two layers and one more
