"""Memory of a GPU: what MLX says it has, how much of it we take, and the limits that MLX is given for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from engine.memory import Need
from quant.errors import EngineError, NotEnoughMemory

# What MLX may keep of freed buffers, for those that come next: a pass frees what it makes, layer by layer.
LEAST_CACHE = 256 * 2**20


@dataclass(frozen=True)
class Limits:
    """Bytes, for mx.set_memory_limit, mx.set_cache_limit and mx.set_wired_limit."""

    memory: int
    cache: int
    wired: int


@dataclass(frozen=True)
class GPUMemory:
    """Bytes. On a Mac `free` is what Metal recommends as a working set: two thirds to three quarters of the machine."""

    total: int
    free: int
    largest: int  # of one buffer

    @classmethod
    def of(cls, info: Mapping[str, str | int]) -> Self:
        """From mx.device_info(), whose names differ between Metal and CUDA."""
        total = _number(info, "memory_size", "total_memory")
        free = _number(info, "max_recommended_working_set_size", "free_memory")
        if total is None or free is None or not 0 < free <= total:
            raise EngineError(f"the GPU does not say how much memory it has; it says {dict(info)}")
        return cls(total, free, _number(info, "max_buffer_length") or free)

    def check_pool(self, layer: int) -> None:
        """The keys and values of a layer are one buffer."""
        if layer > self.largest:
            raise NotEnoughMemory(
                f"the KV cache takes {_size(layer)} for each layer, and the GPU's largest buffer is "
                f"{_size(self.largest)}; a smaller one is to be had by --kv-memory"
            )

    def limits(self, need: Need) -> Limits:
        """For a need that was checked. Beyond the working set a Mac pages, so before it MLX is to wait for what runs.

        All that the model needs is kept resident: macOS takes memory from a GPU that idles, and the next request
        would wait for it.
        """
        return Limits(memory=self.free, cache=max(need.scratch, LEAST_CACHE), wired=min(need.total, self.free))


def _number(info: Mapping[str, str | int], *names: str) -> int | None:
    found = [info[name] for name in names if name in info]
    return int(found[0]) if found else None


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
