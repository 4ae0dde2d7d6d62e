"""The native device computes a model by Puna's primitives alone, and as exactly as its formats allow."""

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from engine.batch import Batch, Span
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.open import open_checkpoint
from tests.exact_ops import ExactLoader, exact_logits
from tests.tiny_models import write_gguf, write_mlx

PROMPT = np.random.default_rng(5).integers(5, 300, 50).tolist()


def graph_of(path: Path, dtype: mx.Dtype) -> mx.array:
    """Logits (1, V) after the prompt, not yet evaluated."""
    with open_checkpoint(path) as checkpoint:
        config = config_of(checkpoint)
        model = Llama.load(config, checkpoint, NativeLoader())
    pages = list(range(-(-len(PROMPT) // PAGE)))
    pool = NativePool(config, len(pages), len(PROMPT), dtype)
    return model.forward(NativeOps(config, pool, Batch.of([Span(PROMPT, 0, pages, True)])))


def exact(path: Path) -> npt.NDArray[np.float64]:
    with open_checkpoint(path) as checkpoint:
        config = config_of(checkpoint)
        logits = exact_logits(Llama.load(config, checkpoint, ExactLoader()), config, PROMPT)
    last: npt.NDArray[np.float64] = logits[-1]
    return last


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("folder", [False, True], ids=["gguf", "mlx"])
def test_float_weights_give_exact_logits_to_rounding(arch: str, folder: bool, tmp_path: Path) -> None:
    path = write_mlx(tmp_path, arch) if folder else write_gguf(tmp_path, arch)
    got, want = np.array(graph_of(path, mx.float32))[0], exact(path)
    # A logit is a chain of some hundred roundings, after layers of as many, each of half a unit of the largest value.
    np.testing.assert_allclose(got, want, rtol=0, atol=200 * 2**-24 * float(np.abs(want).max()))


def test_a_wide_pass_takes_the_memory_of_one_layer(tmp_path: Path) -> None:
    """However many layers there are: MLX by itself hands out the results of a hundred operations ahead, and takes twice
    as much for twelve as for two. A half is for buffers that its other thread has not dropped yet.
    """
    rows = 512

    def peak(layers: int) -> int:
        with open_checkpoint(write_gguf(tmp_path, "llama", layers=layers, context=rows)) as checkpoint:
            config = config_of(checkpoint)
            model = Llama.load(config, checkpoint, NativeLoader())
        pages = list(range(rows // PAGE))
        pool = NativePool(config, len(pages), rows, mx.float16)
        batch = Batch.of([Span([7] * rows, 0, pages, True)])
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(model.forward(NativeOps(config, pool, batch)))
        return mx.get_peak_memory() - before

    assert peak(layers=12) < 1.5 * peak(layers=2)


@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "q6_k", "q8_0", "mxfp4", "f16", "bf16"])
def test_no_matmul_is_left_to_mlx(kind: str, tmp_path: Path) -> None:
    """MLX's own CPU backend takes a hundred times as long."""
    logits = graph_of(write_gguf(tmp_path, "qwen2", kind=kind), mx.float16)
    dot = tmp_path / "graph.dot"
    mx.export_to_dot(str(dot), logits)
    operations = set(re.findall(r'label ="(\w+)"', dot.read_text()))
    assert {"PunaAttention", "PunaGatedMLP"} <= operations
    moving = {"Gather", "AsType", "Contiguous", "Reshape", "Squeeze"}
    assert {name for name in operations if not name.startswith("Puna")} <= moving
