"""One pass over the model: which tokens of which sequences, and where their pages lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence that enter a pass: they follow `past` tokens whose keys and values are in `pages`.

    `pages` also covers the new tokens: len(pages) * page_size >= past + len(tokens). On a GPU all of them are of one
    class: that of prompts, or that of answers (`decodes`).
    """

    tokens: Sequence[int]
    past: int
    pages: Sequence[int]
    wants_logits: bool
    decodes: bool = False


@dataclass(frozen=True)
class Batch:
    """Spans laid end to end. Row r of sequence b has position past[b] + r - starts[b].

    Tokens may be filled in until the pass is evaluated: `ids` is the same memory.
    """

    tokens: Ints  # (T,)
    ids: mx.array
    positions: Ints  # (T,)
    starts: Ints  # (B + 1,) first row of each sequence, and T
    past: Ints  # (B,)
    tables: Ints  # (B, M) page ids, padded with 0
    picks: Ints  # (P,) rows whose logits are wanted, ascending
    decodes: npt.NDArray[np.bool_]  # (B,) which sequences' tokens are of the answers' class

    @classmethod
    def of(cls, spans: Sequence[Span]) -> "Batch":
        lengths = [len(s.tokens) for s in spans]
        assert lengths, "a pass has spans"
        assert min(lengths) > 0, "a span has tokens"
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tables = np.zeros((len(spans), max(len(s.pages) for s in spans)), np.int32)
        for row, span in zip(tables, spans, strict=True):
            row[: len(span.pages)] = span.pages
        positions = [np.arange(s.past, s.past + len(s.tokens)) for s in spans]
        picks = [starts[i + 1] - 1 for i, s in enumerate(spans) if s.wants_logits]
        ids = mx.array(np.concatenate([np.asarray(s.tokens, np.int32) for s in spans]))
        return cls(
            tokens=np.array(ids, copy=False),
            ids=ids,
            positions=np.concatenate(positions).astype(np.int32),
            starts=starts,
            past=np.asarray([s.past for s in spans], np.int32),
            tables=tables,
            picks=np.asarray(picks, np.int32),
            decodes=np.asarray([s.decodes for s in spans]),
        )
