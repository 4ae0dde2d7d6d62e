"""Running a model over BuiltinOps with one sequence, in passes of chosen lengths."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.builtin_weights import BuiltinLoader
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint

Floats = npt.NDArray[np.float32]
PAGE = 32


class Runner:
    """A loaded model and a pool of float32 pages."""

    def __init__(self, path: Path, pages: int = 16, dtype: mx.Dtype = mx.float32) -> None:
        with open_checkpoint(path) as checkpoint:
            self.config = config_of(checkpoint)
            self.model = Llama.load(self.config, checkpoint, BuiltinLoader(dtype))
        self.pool = BuiltinPool(self.config, pages, PAGE, dtype)
        self.dtype = dtype

    def step(self, spans: Sequence[Span]) -> Floats:
        """Logits (P, V) of one pass."""
        ops = BuiltinOps(self.config, self.pool, Batch.of(spans), self.dtype)
        logits = self.model.forward(ops).astype(mx.float32)
        ops.begin()
        return np.array(logits)

    def last_logits(self, tokens: Sequence[int], chunks: Sequence[int], pages: Sequence[int]) -> list[Floats]:
        """The logits (V,) after each chunk; the chunks are the whole of tokens."""
        assert sum(chunks) == len(tokens)
        past, found = 0, []
        for length in chunks:
            span = Span(tokens[past : past + length], past, pages, wants_logits=True)
            found.append(self.step([span])[0])
            past += length
        return found

    def every_logits(self, tokens: Sequence[int], pages: Sequence[int] = tuple(range(16))) -> Floats:
        """The logits (T, V) of every token, decoded one by one."""
        return np.stack(self.last_logits(tokens, [1] * len(tokens), pages))
