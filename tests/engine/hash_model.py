"""A model without weights whose logits are a hash of the history, read back from the pages it was written to."""

import hashlib
from typing import cast

import mlx.core as mx
import numpy as np

from engine.batch import Batch
from engine.engine import Engine, Limits
from engine.messages import Delta, Sampling, Submit
from kvcache.pages import PAGE, PagePool
from models.ops import Ops

VOCAB = 96


class HashModel:
    """A page given to two sequences, a token computed twice or never, a row mixed up: each changes the logits."""

    def __init__(self, pages: int) -> None:
        self._pages = np.full((pages, PAGE), -1, np.int32)
        self.passes: list[Batch] = []

    def forward(self, ops: Ops) -> mx.array:
        batch = cast(Batch, ops)  # the engine hands over what `ops_of` gave it
        self.passes.append(batch)
        for i, past in enumerate(batch.past):
            rows = slice(batch.starts[i], batch.starts[i + 1])
            positions = past + np.arange(rows.stop - rows.start)
            np.testing.assert_array_equal(batch.positions[rows], positions)
            self._pages[batch.tables[i][positions // PAGE], positions % PAGE] = batch.tokens[rows]
        rows_of_logits = [self._logits(batch, int(pick)) for pick in batch.picks]
        return mx.array(np.array(rows_of_logits, np.float32).reshape(len(rows_of_logits), VOCAB))

    def _logits(self, batch: Batch, row: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        sequence = int(np.searchsorted(batch.starts, row, side="right")) - 1
        seen = np.arange(batch.positions[row] + 1)
        history = self._pages[batch.tables[sequence][seen // PAGE], seen % PAGE]
        return logits_after(history.tolist())


def logits_after(history: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    digest = hashlib.sha256(np.array(history, np.int32).tobytes()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32)).standard_normal(VOCAB) * 3


def engine_of(pages: int, max_batch: int = 16, context: int | None = None) -> tuple[Engine, HashModel]:
    model = HashModel(pages)
    limits = Limits(context=context or pages * PAGE, vocab=VOCAB, max_batch=max_batch)
    return Engine(model, lambda batch: cast(Ops, batch), PagePool(pages), limits), model


def finish_all(engine: Engine, answers: dict[int, list[Delta]]) -> None:
    """Every sequence is over; the laws held after every step."""
    while engine.busy:
        collect(engine.step(), answers)
        engine.check()


def collect(deltas: tuple[Delta, ...], answers: dict[int, list[Delta]]) -> None:
    for delta in deltas:
        answers.setdefault(delta.id, []).append(delta)


def alone(prompt: list[int], sampling: Sampling, pages: int = 64) -> list[Delta]:
    """What the request gets from an engine that it has for itself, as request 0."""
    engine, _ = engine_of(pages)
    engine.submit(Submit(0, prompt, sampling))
    answers: dict[int, list[Delta]] = {}
    finish_all(engine, answers)
    return answers[0]
