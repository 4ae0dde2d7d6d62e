"""What lies between the matrices of a layer on the Apple GPU: norms, gates, and q, k, v made ready for attention."""

from dataclasses import dataclass
from math import gcd

import mlx.core as mx

from engine.metal.attention import Call, Pages
from engine.metal.kernel import Input, Kernel, Output, text

FLOATS = ("float16", "bfloat16", "float32")
THREADS = 256  # of a row's norm; part of its arithmetic, so never chosen by load

_HEADER = text("layer.h")


@dataclass(frozen=True)
class Turns:
    """What of rope and head norms is settled with the model."""

    heads: int
    kv_heads: int
    head_dim: int
    rope_dims: int
    interleaved: bool
    head_norms: bool

    def supported(self) -> bool:
        return (
            self.head_dim % 2 == 0
            and self.head_dim <= 256
            and self.rope_dims % 2 == 0 <= self.rope_dims <= self.head_dim
        )


ROPE = Kernel(
    name="layer_rope",
    inputs=(
        Input("q", "X"),  # (T, H Dh)
        Input("k", "X"),  # (T, K Dh)
        Input("v", "X"),
        Input("turns", "float32"),  # (positions, rope dims) cosines, then sines
        Input("positions", "int32"),  # (T,)
        Input("q_norm", "float32"),  # (Dh,)
        Input("k_norm", "float32"),
        Input("eps", "float32", "scalar"),
    ),
    outputs=(Output("queries", "Q"), Output("kv", "KV")),  # (T, H, Dh), (T, 2, K, row)
    body=text("layer_rope.metal"),
    header=_HEADER,
    template=("X", "Q", "KV", "BITS", "HEADS", "KV_HEADS", "HEAD_DIM", "ROPE_DIMS", "INTERLEAVED", "NORMED"),
)
NORM = Kernel(
    name="layer_norm",
    inputs=(Input("x", "X"), Input("weight", "float32"), Input("eps", "float32", "scalar")),  # (T, D), (D,)
    outputs=(Output("normed", "Y"),),
    body=text("layer_norm.metal"),
    header=_HEADER,
    template=("X", "Y", "THREADS"),
)
ADD_NORM = Kernel(
    name="layer_add_norm",
    inputs=(Input("x", "float32"), Input("added", "X"), *NORM.inputs[1:]),
    outputs=(Output("sum", "float32"), Output("normed", "Y")),
    body=text("layer_add_norm.metal"),
    header=_HEADER,
    template=("X", "Y", "THREADS"),
)
GATE = Kernel(
    name="layer_gate",
    inputs=(Input("gate", "X"), Input("up", "X")),
    outputs=(Output("gated", "Y"),),
    body=text("layer_gate.metal"),
    header=_HEADER,
    template=("X", "Y"),
)


def rope_call(turns: Turns, rows: int, x: str, queries: str, pages: Pages) -> Call:
    """A simdgroup for each row and head of q, k and v."""
    heads = turns.heads + 2 * turns.kv_heads
    return Call(
        kernel=ROPE,
        template={
            "X": x,
            "Q": queries,
            "KV": pages.dtype,
            "BITS": pages.bits,
            "HEADS": turns.heads,
            "KV_HEADS": turns.kv_heads,
            "HEAD_DIM": turns.head_dim,
            "ROPE_DIMS": turns.rope_dims,
            "INTERLEAVED": turns.interleaved,
            "NORMED": turns.head_norms,
        },
        grid=(32, heads, rows),
        threadgroup=(32, gcd(heads, 4), 1),
        shapes=((rows, turns.heads, turns.head_dim), (rows, 2, turns.kv_heads, pages.row(turns.head_dim))),
    )


def norm_call(rows: int, width: int, x: str, y: str) -> Call:
    return _norm(NORM, rows, x, y, ((rows, width),))


def add_norm_call(rows: int, width: int, x: str, y: str) -> Call:
    return _norm(ADD_NORM, rows, x, y, ((rows, width), (rows, width)))


def _norm(kernel: Kernel, rows: int, x: str, y: str, shapes: tuple[tuple[int, ...], ...]) -> Call:
    return Call(kernel, {"X": x, "Y": y, "THREADS": THREADS}, (THREADS, rows, 1), (THREADS, 1, 1), shapes)


def gate_call(rows: int, width: int, x: str, y: str) -> Call:
    threads = rows * width // 4
    return Call(GATE, {"X": x, "Y": y}, (threads, 1, 1), (min(256, threads), 1, 1), ((rows, width),))


def supports_width(width: int) -> bool:
    """Rows are read four numbers at a time, and are no small arrays to MLX."""
    return width % 4 == 0 and width >= 8


def written(pool: mx.array, slots: mx.array, kv: mx.array) -> mx.array:
    """The pool (slots, 2, K, row) with kv (T, 2, K, row) at the slots (T,).

    In place when the caller hands over the only reference, and no pass that reads it is in flight: MLX's scatter then
    takes over the buffer. A kernel of ours cannot do it, for its outputs are always new arrays.
    """
    pool[slots] = kv
    return pool
