"""Prompts on the CPU while a GPU decodes: passes by our kernels over the GPU's weights, in a thread of their own."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import mlx.core as mx
import numpy as np

from engine import _native
from engine.batch import Batch, Ints, Span
from engine.borrowed import borrowed, rows_of
from engine.native_ops import NativeOps
from kvcache.pages import PAGE
from models.config import ModelConfig
from models.llama import Llama
from models.ops import Attention, GatedMLP, Linear, Matrix, Rows
from models.rope import rope_table

Parts = list[list[mx.array]]  # of each span, of each layer, keys and values (tokens, 2, K, Dh)


class _Abandoned(Exception):
    """Nobody wants the pass any more."""


class _Pass:
    """What was asked of the thread, and what came of it. The thread owns it until it is over."""

    def __init__(self, spans: Sequence[Span], pasts: Sequence[Sequence[mx.array]]) -> None:
        self.spans = spans
        self.pasts = [list(past) for past in pasts]
        self.parts: Parts = [[] for _ in spans]
        self.fault: BaseException | None = None
        self.abandoned = threading.Event()
        self.over = threading.Event()


class Beside:
    """The CPU's passes over prompts, in a thread of its own. One at a time is asked for, taken or abandoned.

    A pass knows nothing of the GPU's pool: it is given the keys and values of its spans' past and gives those of their
    tokens. Between passes nothing is held, during one the panels of half a layer and the pages of one layer.
    """

    def __init__(self, model: Llama, tokens: int, dtype: mx.Dtype) -> None:
        """Spans of a pass have at most so many tokens in all, past ones included; keys and values are of the dtype."""
        self.tokens = tokens
        self._model, self._dtype = model, dtype
        self._turns = mx.array(rope_table(model.config.attention.rope, min(tokens, model.config.context)))
        self._pass: _Pass | None = None
        self._asked: SimpleQueue[_Pass | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="puna-beside", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """A pass was started and not taken."""
        return self._pass is not None

    @property
    def done(self) -> bool:
        """It is over: take() will not block."""
        return self._pass is not None and self._pass.over.is_set()

    def start(self, spans: Sequence[Span], pasts: Sequence[Sequence[mx.array]]) -> None:
        """Of each span of one pass the past's keys and values, evaluated, (past, 2, K, Dh) for each layer.

        One that was abandoned ends first.
        """
        assert self._pass is None, "one pass at a time"
        assert sum(span.past + len(span.tokens) for span in spans) <= self.tokens, "more than a pass has room for"
        self._pass = _Pass(spans, pasts)
        self._asked.put(self._pass)

    def wait(self, seconds: float) -> bool:
        """Whether the pass is over, after so many seconds at most."""
        assert self._pass is not None, "nothing runs"
        return self._pass.over.wait(seconds)

    def take(self) -> Parts:
        """Of each span, of each layer the keys and values (n, 2, K, Dh) of its tokens; throws what the pass threw."""
        assert self._pass is not None, "nothing runs"
        taken = self._pass
        taken.over.wait()
        self._pass = None
        if taken.fault is not None:
            raise taken.fault
        return taken.parts

    def abandon(self) -> None:
        """What runs is of no use to anybody; it ends with the layer at hand."""
        if self._pass is not None:
            self._pass.abandoned.set()
            self._pass = None

    def close(self) -> None:
        self.abandon()
        self._asked.put(None)
        self._thread.join()

    def _serve(self) -> None:
        # Of this thread alone. MLX's default device is everybody's, and stays the GPU: so no verb may leave it to MLX
        # where it runs.
        stream = mx.new_stream(mx.Device(mx.cpu))
        mx.set_default_stream(stream)
        while self._serve_one(stream):
            pass

    def _serve_one(self, stream: mx.Stream) -> bool:
        asked = self._asked.get()
        if asked is None:
            return False
        try:
            self._compute(asked, stream)
        except _Abandoned:
            pass
        except BaseException as fault:  # whoever takes the pass hears of it
            asked.fault = fault
        asked.over.set()
        return True

    def _compute(self, asked: _Pass, stream: mx.Stream) -> None:
        config = self._model.config
        shape = config.attention
        tables = _tables(asked.spans)
        elements = _native.page_elements(shape.kv_heads, shape.head_dim, self._dtype)
        pages = _native.unwritten_pages(sum(map(len, tables)), elements, self._dtype)
        self._model.forward(_Ops(config, asked, tables, _OneLayer([pages] * config.layers, self._turns), stream))


def _tables(spans: Sequence[Span]) -> list[Ints]:
    """Pages of the pass alone, for each span one behind the other."""
    counts = [-(-(span.past + len(span.tokens)) // PAGE) for span in spans]
    ends = np.cumsum(counts)
    return [np.arange(end - count, end, dtype=np.int32) for count, end in zip(counts, ends, strict=True)]


@dataclass(frozen=True)
class _OneLayer:
    """Pages that each layer has in its turn."""

    layers: list[mx.array]
    rope: mx.array


class _Ops(NativeOps):
    """A pass that is computed while the model asks: a verb's matrices are packed, multiplied by and dropped.

    So at most one layer's panels are there at a time, and few operations are open in MLX's queue, of which there is one
    for all streams: a pass handed over whole would hold up everybody else (docs/placement.md).
    """

    def __init__(
        self, config: ModelConfig, asked: _Pass, tables: Sequence[Ints], pages: _OneLayer, stream: mx.Stream
    ) -> None:
        spans = [
            Span(span.tokens, span.past, table.tolist(), wants_logits=False)
            for span, table in zip(asked.spans, tables, strict=True)
        ]
        super().__init__(config, pages, Batch.of(spans))
        self._shape = config.attention
        self._asked, self._tables, self._stream = asked, tables, stream
        self._room = _native.Room()

    def panels(self, matrix: Matrix) -> _native.Panels:
        return borrowed(matrix, self._room)

    def embed(self, table: Matrix) -> mx.array:
        panels = rows_of(table, self._batch.ids, self._stream)
        return _now(_native.embed(mx.array(np.arange(panels.rows, dtype=np.int32)), panels))

    def add_attention(self, layer: int, x: mx.array, weights: Attention, rows: Rows) -> mx.array:
        self._go_on()
        pages = self._layers[layer]
        for table, past in zip(self._tables, self._asked.pasts, strict=True):
            _native.put_tokens(pages, table, 0, past.pop(0))
        x = _now(super().add_attention(layer, x, weights, rows))
        for span, table, parts in zip(self._asked.spans, self._tables, self._asked.parts, strict=True):
            heads, width = self._shape.kv_heads, self._shape.head_dim
            parts.append(_native.take_tokens(pages, table, span.past, len(span.tokens), heads, width))
        return x

    def add_mlp(self, x: mx.array, weights: GatedMLP) -> mx.array:
        self._go_on()
        return _now(super().add_mlp(x, weights)) if len(x) else x  # nobody wants the last layer's rows

    def logits(self, x: mx.array, norm: mx.array, head: Linear) -> mx.array:
        return mx.array(np.empty((0, head.matrix.rows), np.float32))

    def _go_on(self) -> None:
        if self._asked.abandoned.is_set():
            raise _Abandoned


def _now(x: mx.array) -> mx.array:
    mx.eval(x)
    return x
