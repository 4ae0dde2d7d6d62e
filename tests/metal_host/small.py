"""Small kernels for the tests of the host itself: one float in, one float out, for each thread."""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.metal.kernel import Input, Kernel, Output, Size
from tests.metal_host.run import Order, run

Array = npt.NDArray[Any]

PLACE = "  const uint i = thread_position_in_grid.x, l = thread_position_in_threadgroup.x;\n"


def small(body: str, header: str = "", given: str = "float32", made: str = "float32") -> Kernel:
    """A kernel from x to y whose threads know i, their place in the grid, and l, that in the threadgroup."""
    return Kernel("small", (Input("x", given),), (Output("y", made),), PLACE + body, header)


def computed(
    body: str,
    x: Array,
    *,
    header: str = "",
    made: str = "float32",
    threads: int | None = None,
    group: int = 64,
    out: int | None = None,
    order: Order = Order(),  # noqa: B008 (frozen)
) -> Array:
    """y of such a kernel, for as many threads as x has elements, if nothing else is said."""
    dtype = "bfloat16" if x.dtype == np.uint16 and made == "bfloat16" else x.dtype.name
    grid: Size = (x.size if threads is None else threads, 1, 1)
    shape = grid[0] if out is None else out
    return run(small(body, header, dtype, made), [x], {}, grid, (group, 1, 1), [(shape,)], order=order)[0]


def counting(n: int) -> Array:
    return np.arange(n, dtype=np.float32)
