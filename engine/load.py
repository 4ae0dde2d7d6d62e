"""From an EngineSpec to an engine: the file is opened, judged against the machine, and brought to a device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import mlx.core as mx

from engine.away import Away
from engine.batch import Batch
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader, activation_dtype, device_bytes
from engine.child import Loaded
from engine.chips import chip
from engine.cores import default_threads
from engine.device_memory import GPUMemory
from engine.engine import Engine, Limits, PassOps
from engine.memory import Room, copied_tokens, free_memory, memory_need, room_for, token_bytes
from engine.messages import EngineSpec
from engine.metal import device as metal
from engine.metal import layering
from engine.metal.attending import settled
from engine.metal.ops import MetalOps
from engine.metal.weights import MetalLoader
from engine.pace import Pace, steepness
from engine.placement import Placement, settle
from kvcache.cache import PageCache
from kvcache.disk import DiskTier
from kvcache.pages import PAGE
from kvcache.store import PageStore
from models.config import ModelConfig, config_of
from models.llama import Llama
from quant.checkpoint import Checkpoint
from quant.errors import EngineError
from quant.gguf_file import GGUFFile
from quant.identity import identity_of
from quant.mlx_folder import MLXFolder
from quant.open import open_checkpoint

# Goes up with every change of a kernel's bits or a page's layout: pages on disk from before are not those of today.
ARITHMETIC = 2
# MLX's attention takes keys and values that lie together: pages are gathered for it, and it may want them in its order.
GATHERED = 2
DISK_BUDGET = 10 * 2**30  # bytes, where a folder is given and no budget

Device = Literal["cpu", "builtin", "metal"]
# Last, what tells the kernels apart that were chosen on machines of the same class.
Side = tuple[Llama, Callable[[Batch], PassOps], PageStore, str]

# The types of pages. Quantised ones are bytes, which only our own kernels read.
KV = {"f16": mx.float16, "bf16": mx.bfloat16, "f32": mx.float32}
CPU_KV = KV | {"q8": mx.int8, "q4": mx.uint8}


@dataclass(frozen=True)
class Brought:
    """A model on a device, and the passes that run there."""

    config: ModelConfig
    room: Room
    model: Llama
    ops_of: Callable[[Batch], PassOps]
    pages: PageStore
    device: str  # the class of device, within which equal requests get equal tokens
    placement: Placement


def load(spec: EngineSpec) -> Loaded:
    """The engine is ready to step. Nothing is read beyond the headers of a model that does not fit."""
    with open_checkpoint(Path(spec.path)) as checkpoint:
        brought = bring(spec, checkpoint)
        identity = identity_of(checkpoint) if spec.kv_disk is not None else b""
    room = brought.room
    limits = Limits(room.context, brought.config.vocab, spec.max_batch)
    steep = steepness(brought.config)
    made_by = f"{ARITHMETIC} {brought.device} {spec.kv} {PAGE}".encode()
    cache = PageCache(room.cache // PAGE, brought.pages, _tier(spec, brought), identity + made_by, steep)
    away = _away(spec, brought) if brought.placement.beside else None
    engine = Engine(
        brought.model,
        brought.ops_of,
        cache,
        limits,
        pace=Pace(steep),
        lazy=_fills_in_late(),
        decoded=None if brought.device == "cpu" else 0 if away is None else 1,
        away=away,
    )
    return Loaded(engine, brought.device, brought.placement)


def _away(spec: EngineSpec, brought: Brought) -> Away:
    """The CPU's kernels and threads are ready for prompts, over the weights and into the pages of the GPU."""
    from engine.beside import Beside

    start_cpu(spec.threads)
    passes = Beside(brought.model, brought.room.context, KV[spec.kv])
    return Away(passes, cast(BuiltinPool, brought.pages))


def _fills_in_late() -> bool:
    """Tokens can be written into a pass that is described already: its arrays lie in memory that we share."""
    return mx.default_device() == mx.Device(mx.cpu) or mx.metal.is_available()


def _tier(spec: EngineSpec, brought: Brought) -> DiskTier | None:
    if spec.kv_disk is None:
        return None
    budget = spec.kv_disk_budget or DISK_BUDGET
    return DiskTier.open(Path(spec.kv_disk), budget, brought.pages.page_bytes)


def bring(spec: EngineSpec, checkpoint: GGUFFile | MLXFolder) -> Brought:
    config = config_of(checkpoint)
    device = _device(spec)
    if device != "cpu" and spec.kv not in KV:
        raise EngineError(f"--kv-format {spec.kv} is for the CPU device; here it can be {', '.join(KV)}")
    weights = _weights(device, spec, checkpoint)
    on_gpu = _on_gpu(device)
    operations = _operations(checkpoint)
    placement = settle(spec.prefill, chip() or "", operations, weights, on_gpu=on_gpu, native=device == "cpu")
    beside = placement.beside
    if on_gpu:
        room = _room_on_gpu(config, weights, spec, beside=beside)
    else:
        room = room_for(config, weights, spec, free_memory(), beside=beside)
    model, ops_of, pages, kernels = _SIDES[device](spec, config, checkpoint, room)
    name = _name(device) + ("+cpu-prefill" if beside else "") + kernels
    return Brought(config, room, model, ops_of, pages, name, placement)


def _room_on_gpu(config: ModelConfig, weights: int, spec: EngineSpec, *, beside: bool) -> Room:
    """As much as the GPU can hold, and MLX is told so before anything is loaded."""
    memory = GPUMemory.of(mx.device_info())
    room = room_for(config, weights, spec, memory.free, GATHERED, beside=beside)
    memory.check_pool(room.cache * token_bytes(config, spec.kv) // config.layers)
    gathered = copied_tokens(config, spec.max_batch, GATHERED, beside=beside) * room.context
    need = memory_need(config, weights, room.cache, spec.kv, spec.max_batch, gathered, beside=beside)
    limits = memory.limits(need)
    mx.set_memory_limit(limits.memory)
    mx.set_cache_limit(limits.cache)
    if mx.metal.is_available():
        mx.set_wired_limit(limits.wired)
    return room


def _operations(checkpoint: Checkpoint) -> int:
    """Of a token: a product and a sum for each weight of a matrix."""
    return sum(2 * tensor.size for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1)


def _device(spec: EngineSpec) -> Device:
    """Our own kernels on a CPU and, where they are the faster ones, on Apple's GPU; MLX's on any other GPU."""
    if spec.device != "auto":
        return spec.device
    if metal.usable():
        return "metal"
    return "builtin" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def _name(device: Device) -> str:
    return "gpu" if device == "builtin" and _on_gpu(device) else device


def _on_gpu(device: Device) -> bool:
    return device != "cpu" and mx.default_device() == mx.Device(mx.gpu)


def _weights(device: Device, spec: EngineSpec, checkpoint: Checkpoint) -> int:
    """Bytes on the device. Panels are about as large as the file; what MLX has no kernel for outgrows it."""
    if device != "cpu":
        return device_bytes(checkpoint, _builtin_dtype(spec, checkpoint))
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def start_cpu(threads: int | None) -> None:
    """The kernels are chosen and the threads run, one for each fast core if not told, or it is said why not."""
    from engine import _native

    threads = threads or default_threads()
    try:
        _native.kernels()
        _native.set_threads(threads)
    except RuntimeError as fault:
        raise EngineError(f"the CPU cannot be used with {threads} threads: {fault}") from fault


def _builtin_dtype(spec: EngineSpec, checkpoint: Checkpoint) -> mx.Dtype:
    return mx.float32 if spec.kv == "f32" else activation_dtype(checkpoint)


def _on_cpu(spec: EngineSpec, config: ModelConfig, checkpoint: Checkpoint, room: Room) -> Side:
    # The extension is imported where it is used: a machine with a GPU does without it.
    from engine.native_ops import NativeOps, NativePool
    from engine.native_weights import NativeLoader

    mx.set_default_device(mx.Device(mx.cpu))
    start_cpu(spec.threads)
    model = Llama.load(config, checkpoint, NativeLoader())
    pool = NativePool(config, room.cache // PAGE, room.context, CPU_KV[spec.kv])
    return model, lambda batch: NativeOps(config, pool, batch), pool, ""


def _on_builtin(spec: EngineSpec, config: ModelConfig, checkpoint: Checkpoint, room: Room) -> Side:
    dtype = _builtin_dtype(spec, checkpoint)
    model = Llama.load(config, checkpoint, BuiltinLoader(dtype))
    pool = BuiltinPool(config, room.cache // PAGE, PAGE, KV[spec.kv])
    return model, lambda batch: BuiltinOps(config, pool, batch, dtype), pool, ""


def _on_metal(spec: EngineSpec, config: ModelConfig, checkpoint: Checkpoint, room: Room) -> Side:
    dtype = _builtin_dtype(spec, checkpoint)
    supervisor = metal.supervisor()
    attending, chosen = settled(supervisor, config.attention, dtype, KV[spec.kv])
    between, small = layering.settled(supervisor, config, dtype, KV[spec.kv])
    loader = MetalLoader(dtype, supervisor, chosen=chosen | small)
    loader.settle(checkpoint)
    model = Llama.load(config, checkpoint, loader)
    pool = BuiltinPool(config, room.cache // PAGE, PAGE, KV[spec.kv])
    return model, lambda batch: MetalOps(config, pool, batch, dtype, attending, between), pool, f"-{loader.fingerprint}"


_SIDES = {"cpu": _on_cpu, "builtin": _on_builtin, "metal": _on_metal}
