"""A kernel for the Apple GPU: the body and header that we write, the source that MLX makes of them, and its launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

# What MLX 0.32.4 calls a dtype in the source of a kernel.
METAL_TYPES = {
    "bool": "bool",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "float32": "float",
    "complex64": "complex64_t",
}
# What a thread may ask about its place: MLX adds those that the body names as arguments, in this order.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
CONSTANT_ELEMENTS = 8  # an input of fewer elements than this lies in constant memory, whatever the body would like

Space = Literal["device", "constant", "scalar"]
Value = bool | int | str  # of a template parameter; a string names a dtype
Template = Mapping[str, Value]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Input:
    """An array that is only read; `dtype` names a dtype of MLX or a template parameter that is one.

    Its space settles the type in the signature, so each launch is held to it: device means at least 8 elements,
    constant a list of 1 to 7, scalar an array of no dimension, which the body reads without an index.
    """

    name: str
    dtype: str
    space: Space = "device"

    def takes(self, shape: Sequence[int]) -> bool:
        elements = 1
        for extent in shape:
            elements *= extent
        if self.space == "scalar":
            return not shape
        return bool(shape) and elements > 0 and (elements < CONSTANT_ELEMENTS) == (self.space == "constant")


@dataclass(frozen=True)
class Output:
    """An array that MLX allocates afresh for each launch and that the kernel fills, every element."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """The body of a kernel and all that decides its signature: nothing of a single launch is part of the source.

    `source` is, to the letter, what MLX compiles behind its own header, and the same text runs on the host in tests.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    body: str
    header: str = ""
    template: tuple[str, ...] = ()  # parameters in the order in which they are declared
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False

    def __post_init__(self) -> None:
        assert self.outputs, f"{self.name}: a kernel needs an output"

    def dtype(self, name: str, template: Template) -> str:
        """The dtype of an input or output, a template parameter looked up."""
        found = template.get(name, name)
        assert isinstance(found, str), f"{self.name}: {name} is no dtype"
        assert found in METAL_TYPES, f"{self.name}: no dtype {found}"
        return found

    def function(self, template: Template) -> str:
        """The name of the function, one for each instance."""
        values = "".join("_" + metal_value(template[name]).replace("-", "_") for name in self.template)
        marks = {"device": "", "constant": "c", "scalar": "s"}
        types = [METAL_TYPES[self.dtype(i.dtype, template)] + marks[i.space] for i in self.inputs]
        types += [METAL_TYPES[self.dtype(o.dtype, template)] for o in self.outputs]
        instance = f"_{values}" if self.template else ""
        return "_".join([f"custom_kernel_{self.name}{instance}", *types])

    def source(self, template: Template) -> str:
        """What MLX 0.32.4 builds around the body: header, template, signature, body, instantiation."""
        assert tuple(template) == self.template, f"{self.name} takes {self.template}, not {tuple(template)}"
        function = self.function(template)
        return (
            f"{self.header}{self._template_line(template)}[[kernel]] void {function}(\n"
            f"{self._signature(template)}) {{\n{self.body}\n}}\n{self._instantiation(function, template)}"
        )

    def launch(
        self,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size,
        threadgroup: Size,
        shapes: Sequence[Sequence[int]],
        *,
        init_value: float | None = None,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        """The outputs of one dispatch of `grid` threads; lazy, as every array of MLX."""
        assert tuple(template) == self.template, f"{self.name} takes {self.template}, not {tuple(template)}"
        assert len(shapes) == len(self.outputs), f"{self.name} makes {len(self.outputs)} outputs"
        for given, declared in zip(inputs, self.inputs, strict=True):
            self._hold(given, declared, template)
        made: list[mx.array] = compiled(self)(
            inputs=list(inputs),
            template=[(name, mlx_value(template[name])) for name in self.template] or None,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=[tuple(shape) for shape in shapes],
            output_dtypes=[mlx_value(self.dtype(o.dtype, template)) for o in self.outputs],
            init_value=init_value,
            stream=stream,
        )
        return made

    def _hold(self, given: mx.array, declared: Input, template: Template) -> None:
        """A launch whose arrays do not fit the signature would compile another kernel than the one that was tested."""
        what = f"{self.name}: {declared.name}"
        dtype = self.dtype(declared.dtype, template)
        assert given.dtype == mlx_value(dtype), f"{what} is {dtype}, got {given.dtype}"
        assert declared.takes(given.shape), f"{what} lies in {declared.space} memory, got shape {given.shape}"

    def _template_line(self, template: Template) -> str:
        kinds = [f"{metal_kind(template[name])} {name}" for name in self.template]
        return f"template <{', '.join(kinds)}>\n" if kinds else ""

    def _signature(self, template: Template) -> str:
        types: list[str] = []
        for given in self.inputs:
            types += self._input(given, METAL_TYPES[self.dtype(given.dtype, template)])
        for made in self.outputs:
            kind = METAL_TYPES[self.dtype(made.dtype, template)]
            types.append(f"device {f'atomic<{kind}>' if self.atomic_outputs else kind}* {made.name}")
        numbered = [f"  {text} [[buffer({i})]]" for i, text in enumerate(types)]
        return ",\n".join(numbered + [f"  {kind} {a} [[{a}]]" for a, kind in ATTRIBUTES.items() if a in self.body])

    def _input(self, given: Input, kind: str) -> list[str]:
        """An input and, if the body names them, what MLX passes behind it."""
        if given.space == "scalar":
            return [f"const constant {kind}& {given.name}"]
        extras = {"shape": "const constant int*", "strides": "const constant int64_t*", "ndim": "const constant int&"}
        asked = [f"{text} {given.name}_{end}" for end, text in extras.items() if f"{given.name}_{end}" in self.body]
        return [f"const {given.space} {kind}* {given.name}", *asked]

    def _instantiation(self, function: str, template: Template) -> str:
        if not self.template:
            return ""
        instance = f"{function}<{', '.join(metal_value(template[name]) for name in self.template)}>"
        return f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({instance}) {instance};\n'


def metal_value(value: Value) -> str:
    return METAL_TYPES[value] if isinstance(value, str) else str(int(value))


def metal_kind(value: Value) -> str:
    """What the template parameter is declared as. True is an int to Python, so bool comes first."""
    kinds: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "int"), (str, "typename"))
    return next(kind for python, kind in kinds if isinstance(value, python))


def mlx_value(value: Value) -> Any:
    return getattr(mx, {"bool": "bool_"}.get(value, value)) if isinstance(value, str) else value


@cache
def compiled(kernel: Kernel) -> Any:
    """MLX's object for the kernel: it builds each instance once, by name and source."""
    return mx.fast.metal_kernel(
        name=kernel.name,
        input_names=[given.name for given in kernel.inputs],
        output_names=[made.name for made in kernel.outputs],
        source=kernel.body,
        header=kernel.header,
        ensure_row_contiguous=kernel.ensure_row_contiguous,
        atomic_outputs=kernel.atomic_outputs,
    )


@cache
def text(name: str) -> str:
    """A .metal or .h file of this folder."""
    return (Path(__file__).parent / name).read_text()
