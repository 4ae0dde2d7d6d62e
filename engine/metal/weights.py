"""Weights on the GPU, each matrix once, in the form that the supervisor's choice for its format and size reads."""

from dataclasses import dataclass, field

import mlx.core as mx

from engine.metal.products import Held, Subject, Way, operation, ways
from engine.metal.trials import Chooser, Launch, launched
from engine.verdicts import hashed
from quant.checkpoint import Checkpoint, Tensor


@dataclass
class MetalLoader:
    """Asks the supervisor for each operation. `chosen` is what it answered, of attention too: name and source."""

    dtype: mx.Dtype
    supervisor: Chooser
    launch: Launch = launched
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the sources that compute with these weights: bits may differ between those of two fingerprints."""
        return hashed(repr(sorted(self.chosen.items())))[:8]

    def vector(self, tensor: Tensor) -> mx.array:
        return mx.array(tensor.values())

    def settle(self, checkpoint: Checkpoint) -> None:
        """All choices are made: trying takes memory that weights will want."""
        for tensor in checkpoint.tensors.values():
            if len(tensor.shape) == 2:
                self._way(tensor)
        mx.clear_cache()

    def matrix(self, tensor: Tensor) -> Held:
        way = self._way(tensor)
        if not way.takes(tensor):
            way = ways(tensor.format, self.dtype, self.launch)[0]  # MLX takes every shape
        held = way.hold(tensor)
        mx.eval(*held.arrays)  # so that numpy's copy is gone before the next matrix comes
        return held

    def _way(self, tensor: Tensor) -> Way:
        wanted = operation(Subject.of(tensor, self.dtype), self.launch)
        way = self.supervisor.choice(wanted)
        assert isinstance(way, Way)
        self.chosen[wanted.key] = f"{way.name} {way.source}"
        return way
