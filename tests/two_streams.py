"""Two streams in one process, one that takes prompts and one that decodes, over one copy of the weights.

MLX's CPU device lends both, in place of a CPU beside a GPU: each stream has a thread of its own, and MLX's own kernels
keep to it. Each stream's engine has pages of its own and a thread that drives it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from engine.batch import Batch
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from engine.engine import Engine, Limits
from engine.messages import Sampling, Submit
from kvcache.cache import PageCache
from kvcache.pages import PAGE
from models.config import ModelConfig, config_of
from models.llama import Llama
from models.ops import Attention, GatedMLP, Rows
from quant.open import open_checkpoint


class LayerByLayer(BuiltinOps):
    """A pass that is computed while the model asks, so that few tasks of it wait in MLX's queues at any time.

    MLX counts tasks of all streams together: who hands it an operation while more than ten are open, on whatever
    stream, waits until one of them is done. A pass of prompts that is handed over whole would hold up everybody else.
    """

    def __init__(self, config: ModelConfig, pool: BuiltinPool, batch: Batch, dtype: mx.Dtype) -> None:
        super().__init__(config, pool, batch, dtype)
        super().begin()

    def begin(self) -> None: ...

    def add_attention(self, layer: int, x: mx.array, weights: Attention, rows: Rows) -> mx.array:
        return _now(super().add_attention(layer, x, weights, rows))

    def add_mlp(self, x: mx.array, weights: GatedMLP) -> mx.array:
        return _now(super().add_mlp(x, weights))


def _now(x: mx.array) -> mx.array:
    mx.eval(x)
    return x


@dataclass(frozen=True)
class Weights:
    """Of one model, in memory once; every stream reads them."""

    config: ModelConfig
    model: Llama
    dtype: mx.Dtype

    @classmethod
    def of(cls, path: Path, dtype: mx.Dtype = mx.float32) -> "Weights":
        with open_checkpoint(path) as checkpoint:
            config = config_of(checkpoint)
            return cls(config, Llama.load(config, checkpoint, BuiltinLoader(dtype)), dtype)

    def engine(self, context: int, max_batch: int, ops: type[BuiltinOps] = BuiltinOps) -> Engine:
        """With pages of its own. Whoever makes it drives it: its passes are on the stream of that thread."""
        config, dtype = self.config, self.dtype
        pages = max_batch * -(-context // PAGE)
        pool = BuiltinPool(config, pages, PAGE, dtype)
        limits = Limits(context, config.vocab, max_batch)
        return Engine(self.model, lambda batch: ops(config, pool, batch, dtype), PageCache(pages, pool), limits)


def answers(engine: Engine, prompts: list[list[int]], length: int) -> list[list[int]]:
    """What the prompts are answered with, greedily, all at once."""
    for i, prompt in enumerate(prompts):
        engine.submit(Submit(i, prompt, Sampling(max_tokens=length, temperature=0)))
    found: list[list[int]] = [[] for _ in prompts]
    while engine.busy:
        for delta in engine.step():
            found[delta.id] += [sampled.token for sampled in delta.tokens]
    return found


def on_own_stream(work: Callable[[], None]) -> threading.Thread:
    """A thread that works on a CPU stream of its own. A fault there is lost with what it should have left."""

    def run() -> None:
        with mx.stream(mx.new_stream(mx.Device(mx.cpu))):
            work()

    return threading.Thread(target=run)
