"""How a call of ours runs on the host."""

from collections.abc import Mapping

from engine.metal.attention import Call
from engine.metal.attention_numbers import Array
from tests.metal_host.run import Order, run


def ran(call: Call, inputs: Mapping[str, Array], order: Order = Order()) -> list[Array]:  # noqa: B008
    """What comes out, as numpy holds it: bfloat16 as its bits."""
    return run(call.kernel, inputs, call.template, call.grid, call.threadgroup, call.shapes, order=order)
