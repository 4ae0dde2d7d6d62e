"""Roofline: the bytes and operations that a pass cannot do without, and the least time a machine needs for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.config import ModelConfig


@dataclass(frozen=True)
class Stored:
    """A matrix (rows, cols) as it lies in memory. A dense one is multiplied in float32, the others in int8."""

    rows: int
    cols: int
    nbytes: int
    dense: bool


@dataclass(frozen=True)
class Weights:
    """The matrices of a model, by which rows of a pass they multiply."""

    embedding: Stored
    every_row: Sequence[Stored]  # all layers but the last, and the last one's keys and values
    wanted_rows: Sequence[Stored]  # the rest of the last layer, and the head: only for rows whose logits are wanted
    tied: bool  # embedding and head are one matrix in memory

    @property
    def nbytes(self) -> int:
        """What one token reads: all of them once. An embedding that is not the head gives one row, counted apart."""
        return sum(w.nbytes for w in (*self.every_row, *self.wanted_rows))


@dataclass(frozen=True)
class Work:
    nbytes: int
    int8: int  # operations; a multiply-add is two
    fp32: int

    def times(self, count: int) -> "Work":
        return Work(self.nbytes * count, self.int8 * count, self.fp32 * count)


@dataclass(frozen=True)
class Limit:
    """The least seconds that some work takes, and what takes them."""

    seconds: float
    name: Literal["memory", "arithmetic"]


def bound(work: Work, read: float | None, int8: float | None, fp32: float | None) -> Limit | None:
    """At these rates of bytes and operations a second; None where nobody knows how fast the memory is.

    Reading goes on beside arithmetic; both kinds of operation take turns on the same units.
    """
    if read is None:
        return None
    limits = [Limit(work.nbytes / read, "memory")]
    if int8 is not None and fp32 is not None:
        limits.append(Limit(work.int8 / int8 + work.fp32 / fp32, "arithmetic"))
    return max(limits, key=lambda limit: limit.seconds)


def decode_work(config: ModelConfig, weights: Weights, kv_bytes: int, contexts: Sequence[int]) -> Work:
    """One token for each sequence; a context is the tokens that it attends to, itself included.

    Weights are read once however many sequences there are; kv_bytes are those of one token in all layers.
    """
    rows = len(contexts)
    seen = sum(_within(config, context) for context in contexts)
    matrices = (*weights.every_row, *weights.wanted_rows)
    return Work(
        nbytes=weights.nbytes + _embedding_bytes(weights, rows) + kv_bytes * seen,
        int8=rows * _products(matrices, dense=False),
        fp32=rows * _products(matrices, dense=True) + _attention(config, config.layers * seen),
    )


def prefill_work(config: ModelConfig, weights: Weights, tokens: int) -> Work:
    """A prompt's tokens from the first on, of which only the last needs logits.

    Weights count once and the KV cache not at all: passes can be cut so that both are read from the processor's caches.
    """
    seen = sum(_within(config, position + 1) for position in range(tokens))
    of_layers = (config.layers - 1) * seen + _within(config, tokens)
    return Work(
        nbytes=weights.nbytes + _embedding_bytes(weights, tokens),
        int8=tokens * _products(weights.every_row, dense=False) + _products(weights.wanted_rows, dense=False),
        fp32=tokens * _products(weights.every_row, dense=True)
        + _products(weights.wanted_rows, dense=True)
        + _attention(config, of_layers),
    )


def _within(config: ModelConfig, context: int) -> int:
    return min(context, config.attention.window or context)


def _embedding_bytes(weights: Weights, rows: int) -> int:
    return 0 if weights.tied else rows * weights.embedding.nbytes // weights.embedding.rows


def _products(matrices: Sequence[Stored], *, dense: bool) -> int:
    """Operations that one row of activations costs."""
    return sum(2 * w.rows * w.cols for w in matrices if w.dense == dense)


def _attention(config: ModelConfig, seen: int) -> int:
    """Each head multiplies its query with a key, and its weight with a value, for each token that a layer sees."""
    return 4 * config.attention.heads * config.attention.head_dim * seen
