"""Rows of a matrix as float32 on the Apple GPU, every bit as the format defines it."""

from functools import cache

from engine.metal.attention import Call
from engine.metal.kernel import Input, Kernel, Output, text
from engine.metal.matmul import Reading


@cache
def _kernel(reading: Reading) -> Kernel:
    return Kernel(
        name=f"rows_{reading.name}",
        inputs=(Input("ids", "int32"), *reading.inputs),  # (T and some more,)
        outputs=(Output("y", "float32"),),  # (T, K)
        header=reading.header + text("rows.h"),
        body=reading.body + text("rows.metal"),
        template=(*(name for name, _ in reading.template), "PIECE"),
    )


def rows_call(reading: Reading, rows: int, cols: int) -> Call:
    pieces = cols // reading.piece
    return Call(
        kernel=_kernel(reading),
        template={**dict(reading.template), "PIECE": reading.piece},
        grid=(pieces, rows, 1),
        threadgroup=(min(pieces, 64), 1, 1),
        shapes=((rows, cols),),
    )
