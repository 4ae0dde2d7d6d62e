"""Ways to attend: MLX's own kernel over gathered keys and values, or ours over the pages; for each class apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.metal.attention import (
    DECODE,
    GROUP,
    MERGE,
    PAGE,
    PREFILL,
    Decode,
    DecodeWork,
    Ints,
    Launch,
    Paged,
    Prefill,
    PrefillWork,
    Shape,
    launched,
    supports,
)
from engine.metal.attention_numbers import CODEBOOK, Doubles
from engine.metal.attention_reference import UNITS, Class
from engine.metal.attention_trials import Attended, device_array
from engine.metal.kernel import mlx_value

Floats = npt.NDArray[np.float32]
Attend = Callable[[mx.array, mx.array], mx.array]  # q (T, H, Dh) and a layer of the pool to (R, H, Dh)

_CACHES = 96e6  # bytes that no chip's caches hold


@dataclass(frozen=True)
class Way:
    """A candidate for one class: kernels of ours that `launch` starts, or MLX where there is none."""

    name: str
    kind: Class
    shape: Shape
    launch: Launch | None

    def takes(self) -> bool:
        return self.launch is None or supports(self.shape)

    def prepared(
        self, starts: Ints, past: Ints, tables: Ints, positions: Ints, sequences: Sequence[int], scale: float
    ) -> Attend:
        """For all layers of a pass, what attends the rows of these sequences, in their order."""
        if self.launch is None:
            return Gathered.of(self.shape, starts, past, tables, sequences, scale)
        paged = Paged.of(tables, positions, scale)
        if self.kind == "decode":
            return Decode.of(self.shape, DecodeWork.of(self.shape, starts, past, sequences), paged, self.launch)
        return Prefill.of(self.shape, PrefillWork.of(starts, sequences), paged, self.launch)

    @property
    def source(self) -> str:
        kernels = () if self.launch is None else (DECODE, MERGE) if self.kind == "decode" else (PREFILL,)
        return "\0".join([self.name, self.kind, repr(self.shape), *(kernel.header + kernel.body for kernel in kernels)])

    def compile(self, trial: Attended) -> None:
        mx.eval(self._attended(trial, trial.written.on_device))

    def result(self, trial: Attended) -> Floats:
        return np.array(self._attended(trial, trial.written.on_device).astype(mx.float32))

    def promises(self, trial: Attended) -> bool:
        return self.launch is not None

    def burst(self, trial: Attended, times: int) -> None:
        """Each time over another copy of the pool: in a model there is always another layer between."""
        pool = trial.written.on_device
        copies = [pool, *(pool + mx.zeros_like(pool[:1]) for _ in range(min(15, int(_CACHES / pool.nbytes))))]
        mx.eval(copies)
        mx.eval([self._attended(trial, copies[i % len(copies)]) for i in range(times)])

    def bound(self, trial: Attended) -> Doubles:
        """MLX does not say how it rounds: four times to the type of what comes out, float32 perhaps through narrower
        multipliers, of numbers that are as large as the values get."""
        if self.launch is not None:
            return trial.reference.bound
        low = max(UNITS[self.shape.out], UNITS["float16"])
        largest = float(max(np.abs(trial.written.kv(b, past + n)[:, 1]).max() for b, past, n in trial.spans))
        return trial.reference.bound + 4 * low * largest

    def _attended(self, trial: Attended, pool: mx.array) -> mx.array:
        every, scale = range(len(trial.spans)), trial.written.scale
        attend = self.prepared(trial.starts, trial.past, trial.tables, trial.positions, every, scale)
        return attend(device_array(trial.q, self.shape.queries), pool)


@dataclass(frozen=True)
class Gathered:
    """MLX's attention, a sequence at a time, over what its pages hold."""

    shape: Shape
    scale: float
    rows: tuple[tuple[int, int], ...]  # of each sequence the first, and behind the last
    slots: tuple[mx.array, ...]  # of each (S,)
    masks: tuple[mx.array, ...]  # of each (n, S) true where a row sees a slot

    @classmethod
    def of(
        cls, shape: Shape, starts: Ints, past: Ints, tables: Ints, sequences: Sequence[int], scale: float
    ) -> "Gathered":
        rows, slots, masks = [], [], []
        for b in sequences:
            n = int(starts[b + 1] - starts[b])
            token, position = np.arange(past[b] + n), past[b] + np.arange(n)[:, None]
            sees = token <= position
            if shape.window is not None:
                sees &= token > position - shape.window
            rows.append((int(starts[b]), int(starts[b + 1])))
            slots.append(mx.array((tables[b][token // PAGE] * PAGE + token % PAGE).astype(np.int32)))
            masks.append(mx.array(sees))
        return cls(shape, scale, tuple(rows), tuple(slots), tuple(masks))

    def __call__(self, q: mx.array, pool: mx.array) -> mx.array:
        return mx.concatenate([self._one(i, q, pool) for i in range(len(self.rows))])

    def _one(self, i: int, q: mx.array, pool: mx.array) -> mx.array:
        first, end = self.rows[i]
        both = stored_numbers(pool[self.slots[i]], self.shape).transpose(1, 2, 0, 3)[:, None]  # (2, 1, K, S, Dh)
        keys, values = both.astype(q.dtype)
        rows = q[first:end].swapaxes(0, 1)[None]  # (1, H, n, Dh)
        mixed = mx.fast.scaled_dot_product_attention(rows, keys, values, scale=self.scale, mask=self.masks[i])
        return mixed[0].swapaxes(0, 1).astype(mlx_value(self.shape.out))


def stored_numbers(rows: mx.array, shape: Shape) -> mx.array:
    """Numbers (..., Dh) of rows (..., row) of pages, by MLX's operations."""
    pages, head_dim = shape.pages, shape.head_dim
    if pages.bits > 8:
        return rows
    groups = -(-head_dim // GROUP)
    scales = rows[..., : 2 * groups].view(mx.bfloat16).astype(mx.float32)[..., None]  # (..., groups, 1)
    codes = rows[..., pages.codes_at(head_dim) :]
    if pages.bits == 8:
        empty = mx.zeros((*codes.shape[:-1], groups * GROUP - head_dim), mx.uint8)
        wide = mx.concatenate([codes, empty], axis=-1).view(mx.int8).astype(mx.float32)
    else:
        pairs = codes.reshape(*codes.shape[:-1], groups, GROUP // 2)
        wide = mx.array(CODEBOOK)[mx.concatenate([pairs & 15, pairs >> 4], axis=-1)]
    numbers = wide.reshape(*codes.shape[:-1], groups, GROUP) * scales
    return numbers.reshape(*codes.shape[:-1], -1)[..., :head_dim]


def ways(shape: Shape, kind: Class, launch: Launch = launched) -> list[Way]:
    """MLX's own first."""
    return [way for way in (Way("mlx", kind, shape, None), Way("paged", kind, shape, launch)) if way.takes()]
