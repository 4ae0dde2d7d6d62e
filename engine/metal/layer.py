"""What lies between the matrices of a layer on the Apple GPU: norms, gates, and q, k, v made ready for attention."""

from dataclasses import dataclass
from math import gcd

import mlx.core as mx

from engine.metal.attention import Call, Pages
from engine.metal.kernel import Input, Kernel, Output, Template, text

FLOATS = ("float16", "bfloat16", "float32")
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
    return _norm(NORM, width, rows, x, y, 1)


def add_norm_call(rows: int, width: int, x: str, y: str) -> Call:
    return _norm(ADD_NORM, width, rows, x, y, 2)


def _norm(kernel: Kernel, width: int, rows: int, x: str, y: str, outputs: int) -> Call:
    """A threadgroup for each row."""
    count = threads(width)
    template: Template = {"X": x, "Y": y, "THREADS": count}
    return Call(kernel, template, (count, rows, 1), (count, 1, 1), ((rows, width),) * outputs)


def gate_call(rows: int, width: int, x: str, y: str) -> Call:
    threads = rows * width // 4
    return Call(GATE, {"X": x, "Y": y}, (threads, 1, 1), (min(256, threads), 1, 1), ((rows, width),))


def threads(width: int) -> int:
    """Of a row's norm. They are part of its arithmetic, so the width of the model settles them and nothing else."""
    return min(512, -(-width // 128) * 32)


def supports_width(width: int) -> bool:
    """Rows are read four numbers at a time, and are no small arrays to MLX."""
    return width % 4 == 0 and width >= 8


def written(pages: mx.array, slots: mx.array, kv: mx.array) -> mx.array:
    """The same array object (slots, 2, K, row), with kv (T, 2, K, row) at the slots (T,).

    No buffer is copied if nothing else refers to it when the pass is encoded, no earlier pass in flight either: MLX's
    scatter then takes it over. A kernel of ours cannot write to it, for its outputs are always new arrays.
    """
    pages[slots] = kv
    return pages
