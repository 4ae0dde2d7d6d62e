"""The source that `Kernel` builds is the one that MLX builds.

MLX without Metal cannot run a kernel, but it records one while a function is exported, and prints the source that it
would compile when asked to be verbose: so the installed version (0.32.4) is itself the oracle.
"""

import os
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest

from engine.metal.kernel import METAL_TYPES, Input, Kernel, Output, Space, Template, compiled, metal_value, mlx_value

SHAPES = {"device": (4, 16), "constant": (3,), "scalar": ()}


def printed_by_mlx(kernel: Kernel, template: Template, folder: Path) -> str:
    """What MLX prints for one launch, caught below Python: it writes to the C++ stream."""
    inputs = [mx.zeros(SHAPES[i.space], mlx_value(kernel.dtype(i.dtype, template))) for i in kernel.inputs]

    def launched(first: mx.array) -> list[mx.array]:
        made: list[mx.array] = compiled(kernel)(
            inputs=[first, *inputs[1:]],
            template=[(name, mlx_value(value)) for name, value in template.items()] or None,
            grid=(64, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(8,) for _ in kernel.outputs],
            output_dtypes=[mlx_value(kernel.dtype(o.dtype, template)) for o in kernel.outputs],
            verbose=True,
        )
        return made

    with tempfile.TemporaryFile(mode="w+") as caught:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(caught.fileno(), 1)
        try:
            mx.export_function(str(folder / "exported.mlxfn"), launched, inputs[0])
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        caught.seek(0)
        said = caught.read()
    return said.split("```\n", 1)[1].rsplit("\n```", 1)[0]


PLAIN = Kernel(
    name="plain",
    inputs=(Input("x", "float32"),),
    outputs=(Output("y", "float16"),),
    body="y[thread_position_in_grid.x] = x[thread_position_in_grid.x];",
)
SHAPED = Kernel(
    name="shaped",
    inputs=(Input("x", "T"), Input("sizes", "int32", "constant"), Input("scale", "float32", "scalar")),
    outputs=(Output("y", "T"), Output("z", "uint32")),
    header="// before\ninline float half_of(float x) { return x / 2; }\n",
    body="  // x_shape x_strides x_ndim sizes_shape scale_shape\n  y[thread_index_in_simdgroup] = scale;",
    template=("T", "N", "LAST"),
)
EVERY_ATTRIBUTE = Kernel(
    name="attributes",
    inputs=(Input("x", "uint8"),),
    outputs=(Output("y", "int64"),),
    body="// dispatch_threads_per_threadgroup grid_size simdgroup_index_in_threadgroup threadgroups_per_grid "
    "grid_origin thread_position_in_threadgroup threads_per_simdgroup thread_execution_width "
    "quadgroup_index_in_threadgroup "
    "dispatch_quadgroups_per_threadgroup dispatch_simdgroups_per_threadgroup quadgroups_per_threadgroup "
    "simdgroups_per_threadgroup thread_index_in_quadgroup thread_index_in_threadgroup threadgroup_position_in_grid "
    "threads_per_grid",
    atomic_outputs=True,
)
CASES: list[tuple[Kernel, Template]] = [
    (PLAIN, {}),
    (SHAPED, {"T": "float32", "N": 8, "LAST": False}),
    (SHAPED, {"T": "bfloat16", "N": -3, "LAST": True}),
    (EVERY_ATTRIBUTE, {}),
]


@pytest.mark.parametrize(("kernel", "template"), CASES, ids=lambda v: getattr(v, "name", ""))
def test_the_source_is_the_one_that_mlx_builds(kernel: Kernel, template: Template, tmp_path: Path) -> None:
    assert kernel.source(template) == printed_by_mlx(kernel, template, tmp_path)


@pytest.mark.parametrize("dtype", METAL_TYPES)
def test_every_dtype_has_the_name_that_mlx_gives_it(dtype: str, tmp_path: Path) -> None:
    body = "// thread_position_in_grid"
    kernel = Kernel("typed", (Input("x", dtype),), (Output("y", dtype),), body, template=("T",))
    assert metal_value(dtype) == METAL_TYPES[dtype]
    assert kernel.source({"T": dtype}) == printed_by_mlx(kernel, {"T": dtype}, tmp_path)


def test_an_input_is_held_to_its_space() -> None:
    """MLX moves an input of fewer than 8 elements to constant memory: the signature, and so the types, change."""
    fits: dict[Space, tuple[int, ...]] = {"device": (8,), "constant": (7, 1), "scalar": ()}
    for space in fits:
        for other, shape in fits.items():
            assert Input("x", "float32", space).takes(shape) == (space == other)


def test_a_launch_with_another_dtype_or_space_is_refused() -> None:
    with pytest.raises(AssertionError, match="x is float32"):
        PLAIN.launch([mx.zeros((64,), mx.float16)], {}, (64, 1, 1), (32, 1, 1), [(64,)])
    with pytest.raises(AssertionError, match="lies in device memory"):
        PLAIN.launch([mx.zeros((4,))], {}, (64, 1, 1), (32, 1, 1), [(64,)])


@pytest.mark.skipif(mx.metal.is_available(), reason="here Metal would run it")
def test_without_metal_a_launch_raises_and_importing_does_not() -> None:
    with pytest.raises(RuntimeError, match="No Metal"):
        PLAIN.launch([mx.zeros((64,))], {}, (64, 1, 1), (32, 1, 1), [(64,)])
