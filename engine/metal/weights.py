"""Weights on the GPU, each matrix once, in the form that the supervisor's choice for its format and size reads."""

from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from engine.candidates import Candidate, Operation
from engine.metal.products import Held, Launch, Way, launched, operation, ways
from engine.metal.trials import Product
from quant.checkpoint import Tensor


class Chooser(Protocol):
    """A supervisor, of what matters here."""

    def choice(self, operation: Operation[Product], /) -> Candidate[Product]: ...


@dataclass
class MetalLoader:
    """Asks the supervisor once for each operation. `chosen` is what it answered."""

    dtype: mx.Dtype
    supervisor: Chooser
    launch: Launch = launched
    chosen: dict[str, str] = field(default_factory=dict)

    def vector(self, tensor: Tensor) -> mx.array:
        return mx.array(tensor.values())

    def matrix(self, tensor: Tensor) -> Held:
        wanted = operation(tensor, self.dtype, self.launch)
        way = self.supervisor.choice(wanted)
        self.chosen[wanted.key] = way.name
        assert isinstance(way, Way)
        if not way.takes(tensor):
            way = ways(tensor.format, self.dtype, self.launch)[0]  # MLX takes every shape
        held = way.hold(tensor)
        mx.eval(*held.arrays)  # so that numpy's copy is gone before the next matrix comes
        return held
