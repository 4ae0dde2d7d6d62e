"""The native extension: CPU primitives of MLX over packed weights and KV pages (engine/cpu)."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

PAGE: int

def kernels() -> str: ...
def set_threads(threads: int) -> None: ...
def threads() -> int: ...
def int8_peak() -> float:
    """Operations a second of all threads with the kernels in use; a multiply-add is two."""

def fp32_peak() -> float: ...
def read_rate(bytes: int) -> float:  # noqa: A002  as the extension calls it
    """Bytes a second at which all threads read a buffer of so many bytes, pass by pass."""

class Panels:
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def tobytes(self) -> bytes: ...

def pack(
    planes: Sequence[tuple[int, int, int, str]],
    format: str,  # noqa: A002  as the extension calls it
    rows: int,
    cols: int,
) -> Panels:
    """Reads a matrix from open files, a plane (fd, offset, bytes, dtype), and lays it out for the kernels."""

class Room:
    """Memory for panels that are soon dropped: the next take what these had."""

    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int:
        """What it holds, in use or not."""

def pack_arrays(
    planes: Sequence[mx.array],
    format: str,  # noqa: A002  as the extension calls it
    rows: int,
    cols: int,
    room: Room | None = None,
) -> Panels:
    """The panels of pack, from planes that lie in memory, evaluated."""

def decode_row(panels: Panels, row: int) -> mx.array: ...
def embed(tokens: mx.array, table: Panels) -> mx.array: ...
def project(
    x: mx.array,
    weights: Sequence[Panels],
    biases: Sequence[mx.array | None],
    norm: mx.array | None = None,
    eps: float = 0,
) -> list[mx.array]: ...
def add_projected(residual: mx.array, x: mx.array, weight: Panels, bias: mx.array | None) -> mx.array: ...
def add_gated_mlp(
    x: mx.array,
    weights: Sequence[Panels],
    biases: Sequence[mx.array | None],
    norm: mx.array | None = None,
    eps: float = 0,
) -> mx.array:
    """x + down(silu(gate(x)) * up(x)), gate and up of the normed x; weights are gate, up, down."""

def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array: ...
def weigh(
    logits: npt.NDArray[np.floating],
    highest: float,
    temperature: float,
    least: float,
    strip: int,
    sums: npt.NDArray[np.float64],
) -> None:
    """Sums (ceil(V / strip),) of exp((logits - highest) / temperature), of 0 where that exponent is below `least`.

    logits are (V,) of float32 or float64. A sum errs by a few ulp of it.
    """

class AttentionPlan:
    @staticmethod
    def of(
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        eps: float,
        interleaved: bool,
        starts: npt.NDArray[np.int32],
        past: npt.NDArray[np.int32],
        tables: npt.NDArray[np.int32],
        rope: mx.array,
        picks: npt.NDArray[np.int32] | None = None,
    ) -> AttentionPlan: ...

class AttentionWeights:
    """Matrices and biases are those of q, k, v and out."""

    def __init__(
        self,
        norm: mx.array,
        matrices: Sequence[Panels],
        biases: Sequence[mx.array | None],
        q_norm: mx.array | None,
        k_norm: mx.array | None,
    ) -> None: ...

def add_attention(
    x: mx.array, pages: mx.array, plan: AttentionPlan, weights: AttentionWeights, only_picked: bool
) -> mx.array:
    """x + out(attention of the normed x), of all rows or of the picked; `pages` is written as by attend."""

def unwritten_pages(pages: int, elements: int, dtype: mx.Dtype) -> mx.array:
    """Pages that take memory as they are written; of type int8 they hold q8, of uint8 q4."""

def page_elements(kv_heads: int, head_dim: int, dtype: mx.Dtype) -> int: ...
def page_bytes(layers: Sequence[mx.array]) -> int:
    """Of one page of `layers`, each (pages, elements), evaluated, with one owner; so for the next three."""

def copy_page(layers: Sequence[mx.array], source: int, target: int) -> None: ...
def read_page(layers: Sequence[mx.array], page: int) -> bytes: ...
def write_page(layers: Sequence[mx.array], page: int, content: bytes) -> None: ...
def put_tokens(pages: mx.array, table: npt.NDArray[np.int32], first: int, tokens: mx.array) -> None:
    """Keys and values (n, 2, K, Dh) of a layer lie in the sequence's pages, as its tokens from `first` on."""

def take_tokens(
    pages: mx.array, table: npt.NDArray[np.int32], first: int, count: int, kv_heads: int, head_dim: int
) -> mx.array:
    """The same out of them again."""

def attend(
    plan: AttentionPlan,
    pages: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    q_norm: mx.array | None,
    k_norm: mx.array | None,
) -> mx.array:
    """Head norms, rope, KV write into `pages` in place, attention; `pages` must be evaluated and have one owner."""
