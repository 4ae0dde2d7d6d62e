"""How a call of ours runs on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from engine.metal.attention import Call
from engine.metal.attention_numbers import Array
from engine.metal.kernel import Kernel, mlx_value
from tests.metal_host.run import Order, run


def ran(call: Call, inputs: Mapping[str, Array], order: Order = Order()) -> list[Array]:  # noqa: B008
    """What comes out, as numpy holds it: bfloat16 as its bits."""
    return run(call.kernel, inputs, call.template, call.grid, call.threadgroup, call.shapes, order=order)


def fusing(kernel: Kernel) -> Kernel:
    """The same without the word that forbids the compiler to fuse products and sums."""
    pragma = "#pragma METAL fp contract(off)"
    assert pragma in kernel.header
    return replace(kernel, header=kernel.header.replace(pragma, ""))


def on_host(call: Call, inputs: Sequence[mx.array]) -> list[mx.array]:
    """What a launch does on a Mac, behind MLX's arrays."""
    given = [np.array(one.view(mx.uint16) if one.dtype == mx.bfloat16 else one) for one in inputs]
    made = run(call.kernel, given, call.template, call.grid, call.threadgroup, call.shapes)
    dtypes = [call.kernel.dtype(output.dtype, call.template) for output in call.kernel.outputs]
    return [mx.array(one).view(mlx_value(dtype)) for one, dtype in zip(made, dtypes, strict=True)]
