"""Ways to multiply by a matrix: MLX's own kernels, ours over the file's blocks, or ours over what MLX's kernels take.

A pass multiplies rows of answers in one class and rows of prompts in another, never by how many there are: within a
class of ours a row has the same bits alone and in any batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

from engine.builtin_repack import AFFINE
from engine.builtin_weights import BuiltinLoader, BuiltinMatrix
from engine.candidates import Doubles, Floats, Operation
from engine.metal.attention import Call
from engine.metal.matmul import ROUNDING, UNDERFLOW, Few, Many, Plan, Reading, few, many, reading
from engine.metal.rows import rows_call
from engine.metal.trials import NAMES, Launch, Phase, Product, Weights, edges_for, launched, rows_for
from engine.verdicts import hashed
from quant.checkpoint import Tensor
from quant.formats import AFFINE as PLANAR
from quant.formats import FORMATS, Affine, Format

_DENSE = {mx.float16: "f16", mx.bfloat16: "bf16", mx.float32: "f32"}
_FEW_AT_ONCE = 32  # rows of x; more are several launches, with the same bits
_LARGE = 2**23  # weights; a smaller matrix may not fill a large chip
_CACHES = 96e6  # bytes that no chip's caches hold


@dataclass(frozen=True)
class Held:
    """A matrix on the device, and who multiplies by it. Where it is no kernel of ours, it is MLX."""

    rows: int
    cols: int
    arrays: tuple[mx.array, ...]
    reading: Reading
    few: Few | None
    many: Many | None
    builtin: BuiltinMatrix | None  # absent where the weights lie as in the file
    launch: Launch

    @property
    def form(self) -> str:
        """The row of the tables of formats in which the arrays lie."""
        return self.builtin.form if self.builtin else self.reading.name

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def times(self, x: mx.array, phase: Phase) -> mx.array:
        """x @ matrix.T, in the dtype of x."""
        if phase is Phase.DECODE and self.few:
            strips = [x[at : at + _FEW_AT_ONCE] for at in range(0, len(x), _FEW_AT_ONCE)]
            products = [self._launched(self.few, strip) for strip in strips]
            return products[0] if len(products) == 1 else mx.concatenate(products)
        if phase is Phase.PROMPT and self.many:
            return self._launched(self.many, x)
        assert self.builtin, "blocks are multiplied by kernels of ours"
        return self.builtin.times(x)

    def at(self, rows: mx.array) -> mx.array:
        """These rows, (T, cols)."""
        if self.builtin:
            return self.builtin.at(rows)
        ids = mx.concatenate([rows.astype(mx.int32), mx.zeros(8, mx.int32)])  # or MLX would build another kernel
        return self.launch(rows_call(self.reading, len(rows), self.cols), [ids, *self.arrays])[0]

    def _launched(self, product: Few | Many, x: mx.array) -> mx.array:
        return self.launch(_call(product, product.plan(len(x), self.rows)), [x, *self.arrays])[0]


def _call(product: Few | Many, plan: Plan) -> Call:
    return Call(product.kernel, plan.template, plan.grid, plan.threadgroup, (plan.shape,))


@dataclass(frozen=True)
class Laid:
    """Weights on the device, as some ways share them."""

    arrays: tuple[mx.array, ...]
    builtin: BuiltinMatrix | None


@dataclass(frozen=True)
class Way:
    """A candidate: how weights lie, and of the kernels that read them which one each class uses; None is MLX."""

    name: str
    blocks: bool  # as the file has them, else as MLX's kernels take them
    few: int | None
    many: int | None
    row: Format | Affine
    dtype: mx.Dtype
    launch: Launch

    def hold(self, tensor: Tensor) -> Held:
        """The matrix on the device; throws where the kernels do not take its shape."""
        return self._over(self._laid(tensor), tensor.shape[0], tensor.shape[1])

    def _laid(self, tensor: Tensor) -> Laid:
        if self.blocks:
            return Laid((mx.array(tensor.planes[0].read().reshape(tensor.shape[0], -1)),), None)
        builtin = BuiltinLoader(self.dtype).matrix(tensor)
        return Laid(builtin.arrays, builtin)

    def _over(self, laid: Laid, rows: int, cols: int) -> Held:
        arrays, builtin = laid.arrays, laid.builtin
        read = _reading_of(self.row, arrays) if builtin else _reading_of_blocks(self.row)
        name = NAMES[self.dtype]
        return Held(
            rows=rows,
            cols=cols,
            arrays=arrays,
            reading=read,
            few=None if self.few is None else few(read, rows, name)[self.few],
            many=None if self.many is None else many(read, name)[self.many],
            builtin=builtin,
            launch=self.launch,
        )

    def takes(self, tensor: Tensor) -> bool:
        rows, cols = tensor.shape
        if self.few is None and self.many is None:
            return True
        if self.blocks:
            assert isinstance(self.row, Format)
            return reading(self.row).supports(rows, cols)
        affine = _affine_of(self.row)
        read = reading(affine, "float32") if affine else reading(FORMATS[_DENSE[self.dtype]])
        return read.supports(rows, cols)

    @property
    def source(self) -> str:
        """Every source that its kernels can come to: shapes choose among their instances by the same Python."""
        texts = [self.name, repr(self)[: repr(self).index("launch")]]
        reads = [reading(self.row)] if self.blocks else _readings(self.row, self.dtype)
        for read in reads:
            products: list[Few | Many] = [*few(read, 4096, NAMES[self.dtype]), *many(read, NAMES[self.dtype])]
            for product in products:
                texts += [product.kernel.header, product.kernel.body]
        return hashed("\0".join(texts))

    def compile(self, trial: Product) -> None:
        mx.eval(self._product(trial))

    def result(self, trial: Product) -> Floats:
        return np.array(self._product(trial).astype(mx.float32))

    def promises(self, trial: Product) -> bool:
        return (self.few if trial.phase is Phase.DECODE else self.many) is not None

    def burst(self, trial: Product, times: int) -> None:
        """Each time by another copy of the weights: in a model there is always another matrix between."""
        copies = self._copies(trial)
        x = mx.array(trial.x).astype(self.dtype)
        mx.eval([copies[i % len(copies)].times(x, trial.phase) for i in range(times)])

    def bound(self, trial: Product) -> Doubles:
        held, decoded = self._held(trial.weights), trial.weights.decoded
        product = held.few if trial.phase is Phase.DECODE else held.many
        if product is None:
            return _of_mlx(trial.x, decoded, NAMES[self.dtype])
        if len(held.arrays) == 1 and not self.blocks:  # dense, and perhaps rounded to the dtype of activations
            kept = np.array(held.arrays[0].astype(mx.float32))
            return product.bound(trial.x, kept) + np.abs(trial.x).astype(np.float64) @ np.abs(kept - decoded).T
        return product.bound(trial.x, decoded)

    def _product(self, trial: Product) -> mx.array:
        return self._held(trial.weights).times(mx.array(trial.x).astype(self.dtype), trial.phase)

    def _held(self, weights: Weights) -> Held:
        return self._over(weights.held(self._layout, self._laid), *weights.tensor.shape)

    @property
    def _layout(self) -> str:
        return "blocks" if self.blocks else "mlx"

    def _copies(self, trial: Product) -> list[Held]:
        count = max(1, min(16, int(_CACHES / self._held(trial.weights).nbytes)))
        copies = trial.weights.held(f"{self._layout} copies", lambda tensor: [self._laid(tensor) for _ in range(count)])
        return [self._over(laid, *trial.weights.tensor.shape) for laid in copies]


def ways(row: Format | Affine, dtype: mx.Dtype, launch: Launch = launched) -> list[Way]:
    """MLX's own first; then ours by how many rows a simdgroup owns, and by what is put into a prompt's tiles."""

    def way(name: str, blocks: bool, few: int | None, many: int | None) -> Way:
        return Way(name, blocks, few, many, row, dtype, launch)

    prompts = range(1, len(many(_readings(row, dtype)[0], NAMES[dtype])))
    found = [way("mlx", False, None, None), way("few", False, 0, None)]
    if isinstance(row, Affine) or row.dense:
        found += [way("few+many", False, 0, 0), *(way(f"few {i}", False, i, None) for i in (1, 2))]
        return [*found, *(way(f"few+many {i}", False, 0, i) for i in prompts)]
    found += [way("blocks", True, 0, 0), *(way(f"blocks, few {i}", True, i, 0) for i in (1, 2))]
    return [*found, *(way(f"blocks, many {i}", True, 0, i) for i in prompts)]


@dataclass(frozen=True)
class Subject:
    """What products are alike enough for one verdict. Its text names it, and is read again."""

    row: Format | Affine
    scales: str  # of affine rows, as a file names dtypes
    large: bool
    dtype: mx.Dtype

    @classmethod
    def of(cls, tensor: Tensor, dtype: mx.Dtype) -> "Subject":
        scales = tensor.planes[-1].dtype if isinstance(tensor.format, Affine) else ""
        return cls(tensor.format, scales, tensor.size >= _LARGE, dtype)

    @classmethod
    def named(cls, key: str) -> "Subject":
        """Throws KeyError or ValueError where the name is of something else."""
        _, kind, size, dtype = key.split(" ")
        name, _, scales = kind.partition("-")
        row = PLANAR[name] if scales else FORMATS[name]
        return cls(row, scales, {"small": False, "large": True}[size], {v: k for k, v in NAMES.items()}[dtype])

    def __str__(self) -> str:
        kind = "-".join(filter(None, [self.row.name, self.scales]))
        return f"product {kind} {'large' if self.large else 'small'} {NAMES[self.dtype]}"


def operation(subject: Subject, launch: Launch = launched) -> Operation[Product]:
    row, scales, dtype = subject.row, subject.scales, NAMES[subject.dtype]
    return Operation(
        key=str(subject),
        candidates=ways(row, subject.dtype, launch),
        trials=partial(_trials, row, scales, dtype),
        timed=partial(_timed, row, scales, dtype, (8192, 4096) if subject.large else (2048, 2048)),
        spot=partial(_spot, row, scales, dtype),
    )


def _trials(row: Format | Affine, scales: str, dtype: str) -> Iterator[Product]:
    """Every height of a tile, one and two tiles, rows of weights and pieces that fill no unit of work."""
    group = _multiple(row)
    ragged = Weights(row, scales, 43, _at_least(1056, group))
    for rows in (1, 2, 3, 5, 11):
        yield Product(f"{rows} rows", Phase.DECODE, rows_for(ragged, rows, dtype), ragged)
    yield Product("prompt of 67", Phase.PROMPT, rows_for(ragged, 67, dtype), ragged)
    least = Weights(row, scales, 9, _at_least(64, group), seed=1)
    tall = Weights(row, scales, 2053, _at_least(512, group), seed=2)  # enough rows for the widest simdgroups
    for phase in Phase:
        for name, weights in (("least", least), ("edges", ragged), ("tall", tall)):
            yield Product(f"{name}, {phase.value}", phase, edges_for(weights, dtype), weights)


def _timed(row: Format | Affine, scales: str, dtype: str, shape: tuple[int, int]) -> list[Product]:
    """A lone answer, eight at once, and a chunk of a prompt."""
    weights = Weights(row, scales, *shape)
    shapes = ((Phase.DECODE, 1), (Phase.DECODE, 8), (Phase.PROMPT, 512))
    return [Product(f"{p.value} {rows}", p, rows_for(weights, rows, dtype), weights) for p, rows in shapes]


def _spot(row: Format | Affine, scales: str, dtype: str) -> Iterator[Product]:
    weights = Weights(row, scales, 67, _at_least(256, _multiple(row)))
    for phase in Phase:
        yield Product(f"spot, {phase.value}", phase, rows_for(weights, 3, dtype), weights)


def _multiple(row: Format | Affine) -> int:
    return row.group if isinstance(row, Affine) else max(8, row.values)


def _at_least(cols: int, multiple: int) -> int:
    return -(-cols // multiple) * multiple


def _affine_of(row: Format | Affine) -> Affine | None:
    """What MLX's kernels get, if it is no dense matrix."""
    if isinstance(row, Affine):
        return row
    return AFFINE[row.name].format if row.name in AFFINE else None


def _reading_of_blocks(row: Format | Affine) -> Reading:
    assert isinstance(row, Format), "planes are no blocks"
    return reading(row)


def _reading_of(row: Format | Affine, arrays: Sequence[mx.array]) -> Reading:
    affine = _affine_of(row)
    return reading(affine, NAMES[arrays[-1].dtype]) if affine else reading(FORMATS[_DENSE[arrays[0].dtype]])


def _readings(row: Format | Affine, dtype: mx.Dtype) -> list[Reading]:
    """Of what the builtin loader may make of it."""
    affine = _affine_of(row)
    if affine is None:
        return [reading(FORMATS[_DENSE[dtype]])]
    return [reading(affine, scales) for scales in dict.fromkeys((NAMES[dtype], "float32"))]


def _of_mlx(x: Floats, decoded: Floats, dtype: str) -> Doubles:
    """MLX does not say how it rounds. Four roundings to the dtype of activations, each of the size of the largest
    weight of 32, and sums in float32 in any order."""
    size = np.abs(x).astype(np.float64)
    rows, cols = decoded.shape
    peaks = np.abs(decoded).astype(np.float64)
    if cols % 32 == 0:
        peaks = np.repeat(peaks.reshape(rows, -1, 32).max(-1), 32, axis=1)
    low = max(ROUNDING[dtype], 2.0**-11)  # float32 may pass through narrower multipliers
    bound: Doubles = (4 * low + cols * 2.0**-23) * (size @ peaks.T) + UNDERFLOW[dtype] * (1 + size.sum(1)[:, None])
    return bound
