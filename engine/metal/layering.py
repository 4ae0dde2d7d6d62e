"""What lies between a layer's products as operations: MLX's own, several passes over memory each, and ours in one.

Rows know nothing of each other in any of them, and none has classes: a row of an answer and one of a prompt are
computed alike. The baseline is what BuiltinOps does.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.builtin_ops import turned
from engine.candidates import Candidate, Doubles, Floats, Operation
from engine.metal import layer
from engine.metal.attention import PAGES, roomy
from engine.metal.attention_reference import UNIT, Reference
from engine.metal.layer import Turns
from engine.metal.layer_reference import gated, normed, ready
from engine.metal.matmul import ROUNDING, UNDERFLOW
from engine.metal.trials import NAMES, Chooser, Launch, launched, rounded
from engine.verdicts import hashed
from models.config import ModelConfig
from models.ops import HeadNorms
from models.rope import Rope, rope_table

EPS = 1e-5
CONTEXT = 2048  # positions of trials
ROWS = (1, 8, 512)  # that are timed: a lone answer, eight at once, a chunk of a prompt
# MLX's sigmoid goes through exp(|x|), which is infinite in float16 beyond 11.09: what is left of a gate there is lost.
_SHUT = {"float16": 11.1 * 2.0**-16, "bfloat16": 0.0, "float32": 0.0}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Kernels:
    """What a pass has between its products; `launch` tells where kernels of ours run."""

    launch: Launch = launched

    def normed(
        self, x: mx.array, added: mx.array | None, weight: mx.array, eps: mx.array, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array]:
        """The residual stream (T, D) with what is added to it, and its norm in `dtype`."""
        name, (rows, width) = NAMES[dtype], x.shape
        if added is None:
            call = layer.norm_call(rows, width, "float32", name)
            return x, self.launch(call, [x, weight, eps])[0]
        call = layer.add_norm_call(rows, width, NAMES[added.dtype], name)
        total, made = self.launch(call, [x, added, weight, eps])
        return total, made

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        name, (rows, width) = NAMES[gate.dtype], gate.shape
        return self.launch(layer.gate_call(rows, width, name, name), [gate, up])[0]

    def ready(
        self,
        turns: Turns,
        qkv: Sequence[mx.array],  # each (T, heads Dh)
        table: mx.array,
        positions: mx.array,  # and some more
        norms: HeadNorms | None,
        eps: mx.array,
        kv: mx.Dtype,
    ) -> tuple[mx.array, mx.array]:
        """Queries (T, H, Dh), and keys beside values (T, 2, K, Dh) as the pool takes them."""
        name = NAMES[qkv[0].dtype]
        call = layer.rope_call(turns, len(qkv[0]), name, name, PAGES[NAMES[kv]])
        weights = [norms.q, norms.k] if norms else [mx.ones(turns.head_dim)] * 2
        queries, both = self.launch(call, [*qkv, table, positions, *weights, eps])
        return queries, both


@dataclass(frozen=True)
class Trial(ABC):
    """Rows of some inputs; the results of each row lie side by side in one."""

    name: str
    dtype: mx.Dtype

    @property
    @abstractmethod
    def reference(self) -> Reference:
        """Within the bounds of our kernel: (T, everything that a row has)."""

    @property
    def exact(self) -> Doubles:
        return self.reference.exact

    @abstractmethod
    def alone(self, row: int) -> Self: ...

    @abstractmethod
    def generous(self) -> Doubles:
        """MLX does not say how it rounds: each number within several roundings to the dtype of activations."""

    @abstractmethod
    def made(self, ours: Kernels | None) -> list[mx.array]:
        """By our kernels, or by MLX's."""


@dataclass(frozen=True)
class Normed(Trial):
    x: Floats
    added: Floats | None
    weight: Floats

    def alone(self, row: int) -> Self:
        added = None if self.added is None else self.added[row : row + 1]
        return replace(self, name=f"{self.name}, row {row} alone", x=self.x[row : row + 1], added=added)

    @cached_property
    def reference(self) -> Reference:
        """A sum is rounded once, which its norm repeats at most twice: in the number and in the mean."""
        total = self.x if self.added is None else self.x + self.added
        wide = total.astype(np.float64)
        norm = normed(wide, self.weight.astype(np.float64), EPS, NAMES[self.dtype])
        of_sum = UNIT * np.abs(wide) + UNDERFLOW["float32"]
        bound = norm.bound + 2 * UNIT * np.abs(norm.exact)
        return Reference(np.concatenate([wide, norm.exact], 1), np.concatenate([of_sum, bound], 1))

    def generous(self) -> Doubles:
        low = 4 * ROUNDING[NAMES[self.dtype]] + self.x.shape[1] * 2 * UNIT
        bound: Doubles = low * np.abs(self.exact) + UNDERFLOW[NAMES[self.dtype]]
        return bound

    def made(self, ours: Kernels | None) -> list[mx.array]:
        x, weight = mx.array(self.x), mx.array(self.weight)
        added = None if self.added is None else mx.array(self.added).astype(self.dtype)
        if ours:
            return [*ours.normed(x, added, weight, mx.array(EPS, mx.float32), self.dtype)]
        total = x if added is None else x + added
        return [total, mx.fast.rms_norm(total, weight, EPS).astype(self.dtype)]


@dataclass(frozen=True)
class Gated(Trial):
    gate: Floats
    up: Floats

    def alone(self, row: int) -> Self:
        rows = slice(row, row + 1)
        return replace(self, name=f"{self.name}, row {row} alone", gate=self.gate[rows], up=self.up[rows])

    @cached_property
    def reference(self) -> Reference:
        return gated(self.gate.astype(np.float64), self.up.astype(np.float64), NAMES[self.dtype])

    def generous(self) -> Doubles:
        name = NAMES[self.dtype]
        lost = (2 * UNDERFLOW[name] * (1 + np.abs(self.gate)) + _SHUT[name]) * (1 + np.abs(self.up))
        of_exp = (3 + 2 * np.abs(self.gate)) * 2 * UNIT  # in units of the last place: the most that Metal allows exp
        bound: Doubles = (8 * ROUNDING[name] + of_exp) * np.abs(self.exact) + lost
        return bound

    def made(self, ours: Kernels | None) -> list[mx.array]:
        gate, up = mx.array(self.gate).astype(self.dtype), mx.array(self.up).astype(self.dtype)
        return [ours.gated(gate, up) if ours else gate * mx.sigmoid(gate) * up]


@dataclass(frozen=True)
class Turned(Trial):
    """q, k and v of rows at some positions; norms of heads where the model has them."""

    kv: mx.Dtype
    turns: Turns
    qkv: tuple[Floats, Floats, Floats]
    positions: npt.NDArray[np.int32]
    weights: tuple[Floats, Floats]

    def alone(self, row: int) -> Self:
        rows = slice(row, row + 1)
        q, k, v = (x[rows] for x in self.qkv)
        name = f"{self.name}, row {row} alone"
        return replace(self, name=name, qkv=(q, k, v), positions=self.positions[rows])

    @property
    def rope(self) -> Rope:
        return Rope(10_000.0, self.turns.rope_dims, self.turns.interleaved)

    @cached_property
    def table(self) -> Floats:
        return rope_table(self.rope, CONTEXT)

    @cached_property
    def reference(self) -> Reference:
        q, k, v, table, q_norm, k_norm = (x.astype(np.float64) for x in (*self.qkv, self.table, *self.weights))
        names, norms = (NAMES[self.dtype], NAMES[self.kv]), (q_norm, k_norm)
        found = ready(self.turns, q, k, v, table, self.positions, norms, EPS, *names)
        parts = [(one.exact.reshape(len(q), -1), one.bound.reshape(len(q), -1)) for one in (found.queries, found.kv)]
        exact, bound = (np.concatenate(some, 1) for some in zip(*parts, strict=True))
        return Reference(exact, bound)

    def generous(self) -> Doubles:
        heads = np.abs(self.exact).reshape(len(self.positions), -1, self.turns.head_dim)
        low = max(ROUNDING[NAMES[self.dtype]], ROUNDING[NAMES[self.kv]])
        least = UNDERFLOW[NAMES[self.dtype]] + UNDERFLOW[NAMES[self.kv]]
        return np.broadcast_to(16 * low * heads.max(-1, keepdims=True) + least, heads.shape).reshape(len(heads), -1)

    def made(self, ours: Kernels | None) -> list[mx.array]:
        q, k, v = (mx.array(x).astype(self.dtype) for x in self.qkv)
        norms = HeadNorms(*(mx.array(w) for w in self.weights)) if self.turns.head_norms else None
        table = mx.array(self.table)
        if ours:
            positions = mx.array(roomy(self.positions))
            return [*ours.ready(self.turns, (q, k, v), table, positions, norms, mx.array(EPS, mx.float32), self.kv)]
        heads = [x.reshape(len(x), -1, self.turns.head_dim) for x in (q, k, v)]
        if norms:
            heads[0] = mx.fast.rms_norm(heads[0], norms.q.astype(q.dtype), EPS)
            heads[1] = mx.fast.rms_norm(heads[1], norms.k.astype(k.dtype), EPS)
        at = table[mx.array(self.positions)]
        heads[:2] = [turned(x, self.rope, at) for x in heads[:2]]
        return [heads[0], mx.stack(heads[1:], axis=1).astype(self.kv)]


@dataclass(frozen=True)
class Between:
    """A candidate; without kernels it is MLX."""

    name: str
    kernels: Kernels | None
    text: str  # of our kernels

    @property
    def source(self) -> str:
        return hashed(self.text)

    def compile(self, trial: Trial) -> None:
        mx.eval(trial.made(self.kernels))

    def result(self, trial: Trial) -> Floats:
        made = [np.array(one.astype(mx.float32)) for one in trial.made(self.kernels)]
        return np.concatenate([one.reshape(len(one), -1) for one in made], 1)

    def bound(self, trial: Trial) -> Doubles:
        return trial.reference.bound if self.kernels else trial.generous()

    def promises(self, trial: Trial) -> bool:
        return self.kernels is not None

    def burst(self, trial: Trial, times: int) -> None:
        mx.eval([trial.made(self.kernels) for _ in range(times)])


@dataclass(frozen=True)
class Subject:
    """One of the operations, at a model's sizes. Its text names it, and is read again."""

    what: str  # norm, gate, rope
    dtype: mx.Dtype
    width: int = 0
    turns: Turns | None = None
    kv: mx.Dtype = mx.float16

    @classmethod
    def named(cls, key: str) -> "Subject":
        """Throws KeyError or ValueError where the name is of something else."""
        if found := _PLAIN.fullmatch(key):
            return cls(found[1], DTYPES[found[3]], int(found[2]))
        if found := _ROPE.fullmatch(key):
            heads, kv_heads, head_dim, dims = (int(found[i]) for i in range(1, 5))
            turns = Turns(heads, kv_heads, head_dim, dims, found[5] == "pairs", found[6] == "normed")
            return cls("rope", DTYPES[found[7]], turns=turns, kv=DTYPES[found[8]])
        raise ValueError(f"{key}: nothing of a layer")

    def __str__(self) -> str:
        name = NAMES[self.dtype]
        if self.turns is None:
            return f"layer {self.what} {self.width} {name}"
        t = self.turns
        kind = f"{'pairs' if t.interleaved else 'halves'} {'normed' if t.head_norms else 'plain'}"
        return f"layer rope {t.heads}/{t.kv_heads}x{t.head_dim} turns {t.rope_dims} {kind} {name} over {NAMES[self.kv]}"

    @property
    def supported(self) -> bool:
        return self.turns.supported() if self.turns else layer.supports_width(self.width)

    @property
    def text(self) -> str:
        kernels = {"norm": (layer.NORM, layer.ADD_NORM), "gate": (layer.GATE,), "rope": (layer.ROPE,)}[self.what]
        return "\0".join([str(self), *(part for kernel in kernels for part in (kernel.header, kernel.body))])

    def trial(self, name: str, rows: int, *, alone: bool = False) -> Trial:
        """Random rows, some of them unlike the others."""
        rng = np.random.default_rng([rows, self.width])

        def numbers(*shape: int, of: mx.Dtype = self.dtype) -> Floats:
            return rounded(rng.standard_normal(shape, np.float32), NAMES[of])

        if self.turns:
            t = self.turns
            q, k, v = (numbers(rows, heads * t.head_dim) for heads in (t.heads, t.kv_heads, t.kv_heads))
            positions = rng.integers(0, CONTEXT, rows).astype(np.int32)
            positions[:1] = CONTEXT - 1
            weights = (numbers(t.head_dim, of=mx.float32), numbers(t.head_dim, of=mx.float32))
            return Turned(name, self.dtype, self.kv, t, (q, k, v), positions, weights)
        a, b = numbers(rows, self.width), numbers(rows, self.width)
        a[-1] *= np.float32(2.0**-6)
        if self.what == "gate":
            a[0] *= np.float32(8)  # gates that are shut, and wide open
            return Gated(name, self.dtype, rounded(a, NAMES[self.dtype]), b)
        x, weight = numbers(rows, self.width, of=mx.float32), numbers(self.width, of=mx.float32)
        x[0, self.width // 2] *= 64
        return Normed(name, self.dtype, x, None if alone else rounded(a, NAMES[self.dtype]), weight)

    def trials(self) -> Iterator[Trial]:
        for rows in (1, 2, 11):
            yield self.trial(f"{rows} rows", rows)
        if self.what == "norm":
            yield self.trial("nothing added", 3, alone=True)


def operation(subject: Subject, launch: Launch = launched) -> Operation[Trial]:
    candidates: list[Candidate[Trial]] = [Between("mlx", None, "")]
    if subject.supported:
        candidates.append(Between("fused", Kernels(launch), subject.text))
    return Operation(
        key=str(subject),
        candidates=candidates,
        trials=subject.trials,
        timed=lambda: [subject.trial(f"{rows} rows", rows) for rows in ROWS],
        spot=partial(_spot, subject),
    )


def _spot(subject: Subject) -> Iterator[Trial]:
    yield subject.trial("spot", 3)


_PLAIN = re.compile(r"layer (norm|gate) (\d+) (\w+)", re.ASCII)
_ROPE = re.compile(r"layer rope (\d+)/(\d+)x(\d+) turns (\d+) (pairs|halves) (normed|plain) (\w+) over (\w+)", re.ASCII)


@dataclass(frozen=True)
class Layering:
    """What lies between a pass's products, settled at load: which of it is ours. None is MLX's."""

    norm: Kernels | None = None
    gate: Kernels | None = None
    rope: Kernels | None = None
    turns: Turns | None = None


def settled(
    chooser: Chooser, config: ModelConfig, dtype: mx.Dtype, kv: mx.Dtype, launch: Launch = launched
) -> tuple[Layering, dict[str, str]]:
    """What passes have between their products, and of each operation the candidate's name and source."""
    shape = config.attention
    rope, norms = shape.rope, config.head_norms
    turns = Turns(shape.heads, shape.kv_heads, shape.head_dim, rope.dims, rope.interleaved, norms)
    subjects = [
        Subject("norm", dtype, config.width),
        Subject("gate", dtype, config.ffn),
        Subject("rope", dtype, turns=turns, kv=kv),
    ]
    found: list[Kernels | None] = []
    chosen = {}
    for subject in subjects:
        wanted = operation(subject, launch)
        candidate = chooser.choice(wanted)
        assert isinstance(candidate, Between)
        found.append(candidate.kernels)
        chosen[wanted.key] = f"{candidate.name} {candidate.source}"
    norm, gate, rope_and_kv = found
    return Layering(norm, gate, rope_and_kv, turns), chosen


def named(key: str, launch: Launch = launched) -> Operation[Trial]:
    """The operation of this key. Throws KeyError or ValueError where it is of something else."""
    return operation(Subject.named(key), launch)
