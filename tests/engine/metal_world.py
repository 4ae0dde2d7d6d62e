"""Metal's kernels behind MLX arrays, run on the host, and supervisors that choose what a test wants."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.candidates import Candidate, Operation, T
from engine.metal.attention import Call
from engine.metal.kernel import mlx_value
from tests.metal_host.run import Array, run


def on_host(call: Call, inputs: Sequence[mx.array]) -> list[mx.array]:
    """What `launched` does on a Mac; here every access is checked."""
    given = [_array(one) for one in inputs]
    made = run(call.kernel, given, call.template, call.grid, call.threadgroup, call.shapes)
    dtypes = [call.kernel.dtype(output.dtype, call.template) for output in call.kernel.outputs]
    return [mx.array(one).view(mlx_value(dtype)) for one, dtype in zip(made, dtypes, strict=True)]


def _array(one: mx.array) -> Array:
    return np.array(one.view(mx.uint16) if one.dtype == mx.bfloat16 else one)


@dataclass(frozen=True)
class Always:
    """Chooses the candidate of this name, or the first where there is none."""

    name: str

    def choice(self, operation: Operation[T]) -> Candidate[T]:
        return next((c for c in operation.candidates if c.name == self.name), operation.candidates[0])
