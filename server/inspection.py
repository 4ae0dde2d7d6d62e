"""`puna inspect`: what a model file says of itself, and what running it takes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from engine.memory import free_memory, memory_need, room_for
from engine.messages import EngineSpec
from models.config import config_of
from quant.checkpoint import Tensor
from quant.errors import EngineError, UnsupportedModel
from quant.gguf_file import GGUFFile
from quant.mlx_folder import MLXFolder
from quant.open import open_checkpoint
from server.logs import one_line

_LONGEST = 80  # characters of a value


def inspect(spec: EngineSpec) -> None:
    """Says what is in the file, and what an engine as specified would take."""
    with open_checkpoint(Path(spec.path)) as checkpoint:
        for line in _lines(checkpoint, spec):
            print(one_line(line))


def _lines(checkpoint: GGUFFile | MLXFolder, spec: EngineSpec) -> Iterator[str]:
    yield f"{checkpoint.path}"
    match checkpoint:
        case GGUFFile():
            yield from _values(checkpoint.metadata)
        case MLXFolder():
            yield from _values(checkpoint.config)
    for tensor in checkpoint.tensors.values():
        shape = " x ".join(map(str, tensor.shape))
        yield f"  {tensor.name:<48} {tensor.format.name:<12} {shape}"
    yield from _formats(checkpoint.tensors)
    yield from _verdict(checkpoint, spec)


def _values(values: Mapping[str, object]) -> Iterator[str]:
    """Keys and values; of a long one its beginning and length."""
    for key, value in values.items():
        yield f"  {key:<48} {_shown(value)}"


def _shown(value: object) -> str:
    match value:
        case list() | np.ndarray():
            return f"{len(value)} values: {str(np.asarray(value[:4]).tolist())[:_LONGEST]}"
        case _:
            text = str(value)
            return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _formats(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for tensor in tensors.values():
        sizes[tensor.format.name].append(tensor.nbytes)
    for name, nbytes in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        yield f"{len(nbytes)} tensors of {name}, {sum(nbytes) / 2**20:.1f} MiB"


def _verdict(checkpoint: GGUFFile | MLXFolder, spec: EngineSpec) -> Iterator[str]:
    """Whether Puna runs it, as what, and in how much memory."""
    try:
        config = config_of(checkpoint)
    except UnsupportedModel as error:
        yield f"not supported: {error.fault}"
        return
    heads, kv_heads = config.attention.heads, config.attention.kv_heads
    yield f"{config.architecture}: {config.layers} layers of width {config.width}, vocabulary of {config.vocab}"
    yield f"{heads} heads, {kv_heads} of keys and values; made for {config.context} tokens of context"
    weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    free = free_memory()
    yield f"{_mib(free)} of memory are free"
    try:
        room = room_for(config, weights, spec, free)
    except EngineError as error:
        yield f"cannot run here: {error}"
        return
    need = memory_need(config, weights, room.cache, spec.kv, spec.max_batch)
    parts = f"weights {_mib(need.weights)}, KV cache {_mib(need.kv)}, scratch {_mib(need.scratch)}"
    yield f"needs {_mib(need.total)} ({parts}) for {room.context} tokens of context, {room.cache} in all"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
