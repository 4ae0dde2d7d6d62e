"""Memory: what a model will need, what the machine has, and how many tokens of KV cache follow from both."""

import sys
from dataclasses import dataclass
from pathlib import Path

from engine.chips import machine_memory
from engine.messages import EngineSpec
from engine.pace import PIECE, PREFILL
from kvcache.pages import PAGE
from models.config import ModelConfig
from quant.errors import EngineError, NotEnoughMemory

USUAL_CONTEXT = 32768  # where the model takes more: agents' prompts fit, and the cache of an 8B model is 4 GB
LEAST_CONTEXT = 1024  # a model that gets less than this, unasked, is of no use
SHARE = 0.9  # of what is free; the rest is for the machine's other work
LARGE_MAC = 36 * 2**30
CACHE_SHARE = 0.25  # of the room, beyond one sequence's cache

_KV_BYTES = {"f16": 2, "bf16": 2, "f32": 4}
_KV_GROUP = 32  # dims that share a scale in quantised pages (engine/cpu/kv_codes.h)


@dataclass(frozen=True)
class Need:
    """Bytes, by what they are for."""

    weights: int
    kv: int
    scratch: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.scratch


@dataclass(frozen=True)
class Room:
    """Tokens that one sequence may have, and those that all together may keep: a whole number of pages each."""

    context: int
    cache: int


def token_bytes(config: ModelConfig, kv: str = "f16") -> int:
    """Keys and values of one token in all layers."""
    return config.layers * config.attention.kv_heads * _head_bytes(config.attention.head_dim, kv)


def _head_bytes(width: int, kv: str) -> int:
    """Keys and values of a token in one head; codes are filled up to whole operands of the kernels."""
    scales = 2 * _up(width, _KV_GROUP) // _KV_GROUP
    if kv == "q8":
        return _up(width, 4) + _up(width, 16) + 2 * scales
    if kv == "q4":
        return _up(width, 8) // 2 + _up(width, _KV_GROUP) // 2 + 2 * scales
    return 2 * width * _KV_BYTES[kv]


def memory_need(
    config: ModelConfig,
    weights: int,
    cache: int,
    kv: str = "f16",
    max_batch: int = 16,
    gathered: int = 0,
    *,
    beside: bool = False,
) -> Need:
    """With weights of so many bytes, a cache for so many tokens, and so many that lie in memory again in one layer.

    Beside a GPU the CPU computes prompts with panels of a layer, in rows of its own.
    """
    heads = config.attention.heads * config.attention.head_dim
    row = 4 * (4 * config.width + 4 * heads + 3 * config.ffn)  # float32 activations that live at once
    rows = PREFILL + max_batch + (PIECE if beside else 0)  # of the largest pass
    panels = weights // config.layers if beside else 0
    logits = 8 * max_batch * config.vocab
    rope = 4 * min(cache, config.context) * config.attention.rope.dims
    copies = gathered * token_bytes(config, kv) // config.layers  # one layer after the other
    return Need(weights, cache * token_bytes(config, kv), rows * row + logits + rope + copies + panels)


def check_fits(need: Need, free: int) -> None:
    """Raises with the numbers."""
    if need.total > SHARE * free:
        parts = f"weights {_size(need.weights)}, KV cache {_size(need.kv)}, scratch {_size(need.scratch)}"
        raise NotEnoughMemory(
            f"the model needs {_size(need.total)} ({parts}) and {_size(free)} are free, of which {SHARE:.0%} are used"
        )


def copied_tokens(config: ModelConfig, max_batch: int, copies: int, *, beside: bool) -> int:
    """Tokens that lie in memory again in one layer, for each token of context.

    `copies` is how often keys and values do while they are attended, all sequences' as long as the longest one's. A
    pass on the CPU beside has a copy of its sequences in all layers, coming or going, and pages of one layer.
    """
    return copies * max_batch + (config.layers + 1 if beside else 0)


def room_for(
    config: ModelConfig, weights: int, spec: EngineSpec, free: int, copies: int = 0, *, beside: bool = False
) -> Room:
    """What was asked for, or else what the model takes and the machine has. Raises if that is not to be had.

    For `copies` see copied_tokens.
    """
    if spec.context is not None and spec.context > config.context:
        raise EngineError(f"a context of {spec.context} was asked for; the model was made for {config.context}")
    without = memory_need(config, weights, 0, spec.kv, spec.max_batch, beside=beside)
    token = token_bytes(config, spec.kv) + 4 * config.attention.rope.dims
    spare = int(SHARE * free - without.total)
    gathered = copied_tokens(config, spec.max_batch, copies, beside=beside)
    gathering = -(-gathered * token_bytes(config, spec.kv) // config.layers)
    longest = spare // (token + gathering) // PAGE * PAGE
    usual = min(config.context, USUAL_CONTEXT)
    context = spec.context or min(usual, max(longest, LEAST_CONTEXT))
    room = (spare - gathering * context) // token // PAGE * PAGE
    cache = _whole_pages(_asked_cache(config, spec) or max(context, int(CACHE_SHARE * room)))
    if cache < context and spec.context is None and spec.kv_memory is not None:
        context = cache
    if cache < context:
        raise EngineError(f"a context of {context} tokens does not fit in a cache of {cache}")
    check_fits(memory_need(config, weights, cache, spec.kv, spec.max_batch, gathered * context, beside=beside), free)
    return Room(context, cache)


def _asked_cache(config: ModelConfig, spec: EngineSpec) -> int | None:
    """Tokens, if a number of them or of bytes was asked for."""
    if spec.cache_tokens is not None or spec.kv_memory is None:
        return spec.cache_tokens
    tokens = spec.kv_memory // token_bytes(config, spec.kv) // PAGE * PAGE
    if tokens < PAGE:
        least = _size(PAGE * token_bytes(config, spec.kv))
        raise EngineError(f"--kv-memory: {_size(spec.kv_memory)} hold no page of this model, which takes {least}")
    return tokens


def free_memory() -> int:
    """Bytes that may be taken without harm to others, within the limits of a container."""
    return _darwin() if sys.platform == "darwin" else min(_linux(Path("/proc/meminfo")), _container())


def _linux(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, value = line.split(":")
        if name == "MemAvailable":
            return int(value.removesuffix("kB")) * 1024
    raise EngineError(f"{meminfo} does not say how much memory is available")


def _container(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's own limit leaves; files that it merely caches do not count."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or one of the old kind
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - used + int(stat["inactive_file"]))


def _darwin() -> int:
    """What Metal recommends as a working set, and macOS makes room for: MLX, which knows, is not in this process."""
    size = machine_memory()
    if size == 0:
        raise EngineError("the machine does not say how much memory it has")
    return size * 3 // 4 if size >= LARGE_MAC else size * 2 // 3


def _whole_pages(tokens: int) -> int:
    return _up(tokens, PAGE)


def _up(count: int, whole: int) -> int:
    return -(-count // whole) * whole


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
