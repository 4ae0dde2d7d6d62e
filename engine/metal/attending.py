"""Attention over pages as operations: MLX's own over gathered pages, and ours straight from the page tables."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Span
from engine.builtin_ops import BuiltinOps, BuiltinPool
from engine.candidates import Doubles, Floats, Operation
from engine.metal.attention import DECODE, MERGE, PAGE, PREFILL, Shape, supports
from engine.metal.attention_reference import Class, Reference, attended
from engine.metal.matmul import ROUNDING
from engine.metal.paging import Attending, Paging, shape_of
from engine.metal.trials import NAMES, Chooser, Launch, Phase, launched, rounded
from engine.verdicts import hashed
from models.config import AttentionShape, ModelConfig
from models.rope import Rope

Row = tuple[int, int, int]  # of a sequence, tokens before, tokens that a pass brings


class World:
    """Sequences of some lengths, all their keys and values in a pool with NaN wherever nothing was written."""

    def __init__(
        self, attention: AttentionShape, kv: mx.Dtype, dtype: mx.Dtype, lengths: Sequence[int], layers: int = 1
    ) -> None:
        rng = np.random.default_rng(0)
        most = max(lengths)
        self.config = ModelConfig("llama", "trial", 1, 1, layers, 1, 1e-5, most, attention, True, False, False)
        self.kv, self.dtype = kv, dtype
        need = [-(-length // PAGE) for length in lengths]
        ids = iter(rng.permutation(sum(need) + 1).tolist())
        self.pages = [[next(ids) for _ in range(count)] for count in need]
        self.q = [self._numbers(rng, (n, attention.heads, attention.head_dim), dtype) for n in lengths]
        self.kept = [self._numbers(rng, (n, 2, attention.kv_heads, attention.head_dim), kv) for n in lengths]
        self._count = sum(need) + 1

    @staticmethod
    def _numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: mx.Dtype) -> Floats:
        return rounded(rng.standard_normal(shape, np.float32), NAMES[dtype])

    @cached_property
    def pool(self) -> BuiltinPool:
        pool = BuiltinPool(self.config, self._count, PAGE, self.kv)
        slots = np.full(pool.layers[0].shape, np.nan, np.float32)
        slots[pool.nowhere] = 0
        for pages, kept in zip(self.pages, self.kept, strict=True):
            places = np.add.outer(np.array(pages) * PAGE, np.arange(PAGE)).reshape(-1)
            slots[places[: len(kept)]] = kept
        pool.layers = [mx.array(slots).astype(self.kv) for _ in pool.layers]
        return pool


@dataclass(frozen=True)
class Attended:
    """Some rows of a world's sequences, computed in a class."""

    name: str
    phase: Phase
    world: World
    spans: tuple[Row, ...]

    def alone(self, row: int) -> "Attended":
        every = [(b, past + r, 1) for b, past, n in self.spans for r in range(n)]
        return replace(self, name=f"{self.name}, row {row} alone", spans=(every[row],))

    @property
    def exact(self) -> Doubles:
        return np.concatenate([reference.exact for reference in self.references()])

    def references(self) -> Iterator[Reference]:
        """For each span; each number within the bounds of our kernels of this class."""
        world = self.world
        shape = shape_of(world.config.attention, NAMES[world.dtype], NAMES[world.kv])
        kind: Class = "decode" if self.phase is Phase.DECODE else "prefill"
        for b, past, n in self.spans:
            q, kept = (x.astype(np.float64) for x in (world.q[b][past : past + n], world.kept[b][: past + n]))
            found = attended(shape, kind, q, kept[:, 0], kept[:, 1], world.config.attention.scale, past)
            yield Reference(found.exact.reshape(n, -1), found.bound.reshape(n, -1))


@dataclass(frozen=True)
class Attender:
    """A candidate for one class; without a shape it is MLX."""

    name: str
    shape: Shape | None
    launch: Launch

    @property
    def source(self) -> str:
        texts = [repr(self.shape)]
        for kernel in (DECODE, MERGE, PREFILL) if self.shape else ():
            texts += [kernel.header, kernel.body]
        return hashed("\0".join(texts))

    def compile(self, trial: Attended) -> None:
        mx.eval(self._computing(trial)(0))

    def result(self, trial: Attended) -> Floats:
        return np.array(self._computing(trial)(0).astype(mx.float32))

    def bound(self, trial: Attended) -> Doubles:
        if self.shape is None:
            return np.full_like(trial.exact, _of_mlx(trial.world))
        return np.concatenate([reference.bound for reference in trial.references()])

    def promises(self, trial: Attended) -> bool:
        return self.shape is not None

    def burst(self, trial: Attended, times: int) -> None:
        """Each time over another layer of the pool, as a model does."""
        computing = self._computing(trial)
        layers = len(trial.world.pool.layers)
        mx.eval([computing(i % layers) for i in range(times)])

    def _computing(self, trial: Attended) -> Callable[[int], mx.array]:
        """What a pass does in a layer, with all that it prepares for its layers done."""
        world = trial.world
        batch = Batch.of([Span([0] * n, past, world.pages[b], wants_logits=False) for b, past, n in trial.spans])
        q = mx.array(np.concatenate([world.q[b][past : past + n] for b, past, n in trial.spans])).astype(world.dtype)
        if self.shape is None:
            ops = BuiltinOps(world.config, world.pool, batch, world.dtype)
            return lambda layer: ops.mixed(layer, q)
        paging = Paging.of(trial.phase, self.shape, batch, range(len(trial.spans)), self.launch)
        scale = mx.array(world.config.attention.scale, mx.float32)
        return lambda layer: paging(q, world.pool.layers[layer], scale)


def operation(
    attention: AttentionShape, phase: Phase, dtype: mx.Dtype, kv: mx.Dtype, launch: Launch = launched
) -> Operation[Attended]:
    shape = shape_of(attention, NAMES[dtype], NAMES[kv])
    size = f"{attention.heads}/{attention.kv_heads}x{attention.head_dim} window {attention.window}"
    return Operation(
        key=f"attention {phase.value} {size} {NAMES[dtype]} over {NAMES[kv]}",
        candidates=[Attender("mlx", None, launch), *([Attender("paged", shape, launch)] if supports(shape) else [])],
        trials=partial(_trials, attention, phase, dtype, kv),
        timed=partial(_timed, attention, phase, dtype, kv),
        spot=partial(_spot, attention, phase, dtype, kv),
    )


_KEY = re.compile(r"attention (decode|prompt) (\d+)/(\d+)x(\d+) window (None|\d+) (\w+) over (\w+)", re.ASCII)


def named(key: str, launch: Launch = launched) -> Operation[Attended]:
    """The operation of this key. Throws KeyError or ValueError where it is of something else."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key}: no attention")
    phase, heads, kv_heads, head_dim, window, dtype, kv = found.groups()
    width = int(head_dim)
    rope = Rope(theta=10000.0, dims=width, interleaved=False)
    seen = None if window == "None" else int(window)
    shape = AttentionShape(int(heads), int(kv_heads), width, width**-0.5, rope, seen)
    dtypes = {name: dtype for dtype, name in NAMES.items()}
    return operation(shape, Phase(phase), dtypes[dtype], dtypes[kv], launch)


def settled(
    chooser: Chooser, attention: AttentionShape, dtype: mx.Dtype, kv: mx.Dtype, launch: Launch = launched
) -> tuple[Attending, dict[str, str]]:
    """What passes attend with, and of each operation the candidate's name and source."""
    shapes, chosen = {}, {}
    for phase in Phase:
        wanted = operation(attention, phase, dtype, kv, launch)
        found = chooser.choice(wanted)
        assert isinstance(found, Attender)
        shapes[phase], chosen[wanted.key] = found.shape, f"{found.name} {found.source}"
    return Attending(shapes[Phase.DECODE], shapes[Phase.PROMPT], launch), chosen


def _trials(attention: AttentionShape, phase: Phase, dtype: mx.Dtype, kv: mx.Dtype) -> Iterator[Attended]:
    """Lengths about the edges of pages, of partitions, of tiles, and of the window."""
    window = attention.window
    lengths = [1, 2, 32, 33, 255, 256, 257, 600]
    if window is not None:
        lengths += [min(window + n, 2000) for n in (0, 1, 40)]
    world = World(attention, kv, dtype, lengths)
    last = tuple((b, length - 1, 1) for b, length in enumerate(lengths))
    yield Attended("one sequence", phase, world, last[-1:])
    if phase is Phase.DECODE:
        yield Attended("all at once", phase, world, last)
        again = tuple((b, max(0, length - 5), min(length, 5)) for b, length in enumerate(lengths))
        yield Attended("answers computed again", phase, world, again)
        return
    yield Attended("whole prompts", phase, world, tuple((b, 0, lengths[b]) for b in (1, 2, 3, 0)))
    ends = tuple((b, max(0, length - 35), min(length, 35)) for b, length in enumerate(lengths))
    yield Attended("ends of prompts", phase, world, ends)


def _timed(attention: AttentionShape, phase: Phase, dtype: mx.Dtype, kv: mx.Dtype) -> list[Attended]:
    """A lone sequence and eight, or a chunk of a prompt at its start and further on."""
    if phase is Phase.DECODE:
        world = World(attention, kv, dtype, [2048] + [1024] * 7, layers=4)
        last = tuple((b, len(kept) - 1, 1) for b, kept in enumerate(world.kept))
        return [Attended("1 at 2048", phase, world, last[:1]), Attended("8 at 1024", phase, world, last)]
    world = World(attention, kv, dtype, [2048], layers=4)
    return [Attended(f"512 at {past}", phase, world, ((0, past, 512),)) for past in (0, 1536)]


def _spot(attention: AttentionShape, phase: Phase, dtype: mx.Dtype, kv: mx.Dtype) -> Iterator[Attended]:
    world = World(attention, kv, dtype, [40, 300])
    n = 1 if phase is Phase.DECODE else 3
    yield Attended("spot", phase, world, ((0, 40 - n, n), (1, 300 - n, n)))


def _of_mlx(world: World) -> float:
    """MLX does not say how it rounds. Values and weights are rounded to the narrower dtype, and scores before."""
    low = max(ROUNDING[NAMES[world.dtype]], ROUNDING[NAMES[world.kv]], 2.0**-11)
    most = max(float(np.abs(kept).max()) for kept in world.kept)
    return 16 * low * most
