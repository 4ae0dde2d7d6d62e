"""What MLX multiplies with is what the file says: repacked exactly where affine quantisation can say it."""

import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.builtin_repack import packed
from engine.builtin_weights import BuiltinLoader, Dense, Quantised, activation_dtype, device_bytes
from quant.decode import affine_codes
from quant.formats import Affine
from quant.open import open_checkpoint
from tests.models.passes import Runner
from tests.tiny_models import write_gguf, write_mlx

AFFINE = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k"]
NAME = "blk.1.ffn_down.weight"


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("kind", AFFINE)
def test_a_repacked_matrix_decodes_to_the_bits_of_the_file(kind: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "llama", kind=kind)) as checkpoint:
        matrix = BuiltinLoader(dtype).matrix(checkpoint.tensors[NAME])
        values = checkpoint.tensors[NAME].values()
    assert isinstance(matrix, Quantised)
    assert (matrix.rows, matrix.cols) == values.shape
    np.testing.assert_array_equal(np.array(matrix.at(mx.arange(matrix.rows))), values)


@pytest.mark.parametrize("kind", AFFINE)
def test_a_product_is_the_product_with_the_decoded_weights(kind: str, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "llama", kind=kind)) as checkpoint:
        matrix = BuiltinLoader(mx.float32).matrix(checkpoint.tensors[NAME])
        values = checkpoint.tensors[NAME].values().astype(np.float64)
    x = np.random.default_rng(3).standard_normal((3, matrix.cols)).astype(np.float32)
    # Each of the n products and sums rounds once; scale * (code sums) and bias * (x sums) may cancel by a factor of 16.
    bound = 16 * matrix.cols * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(values).T).max()
    np.testing.assert_allclose(np.array(matrix.times(mx.array(x))), x @ values.T, rtol=0, atol=bound)


def test_small_scales_stay_float16_and_k_scales_widen(tmp_path: Path) -> None:
    for kind, due in (("q4_0", mx.float16), ("q8_0", mx.float16), ("q4_k", mx.float32)):
        with open_checkpoint(write_gguf(tmp_path, "llama", kind=kind)) as checkpoint:
            matrix = BuiltinLoader(mx.float16).matrix(checkpoint.tensors[NAME])
        assert isinstance(matrix, Quantised)
        assert matrix.scales.dtype == due


def test_a_format_without_a_kernel_is_decoded_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), open_checkpoint(write_gguf(tmp_path, "llama", kind="q6_k")) as checkpoint:
        matrix = BuiltinLoader(mx.float32).matrix(checkpoint.tensors[NAME])
        values = checkpoint.tensors[NAME].values()
    assert isinstance(matrix, Dense)
    np.testing.assert_array_equal(np.array(matrix.values), values)
    assert NAME in caplog.text
    assert "q6_k" in caplog.text


@pytest.mark.parametrize("kind", ["f32", "bf16", "q4_0", "q5_1", "q4_k", "q6_k"])
def test_what_loading_takes_is_known_before(kind: str, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "llama", kind=kind)) as checkpoint:
        for dtype in (mx.float16, mx.float32):
            loader = BuiltinLoader(dtype)
            matrices = [loader.matrix(t).nbytes for t in checkpoint.tensors.values() if len(t.shape) == 2]
            vectors = [loader.vector(t).nbytes for t in checkpoint.tensors.values() if len(t.shape) == 1]
            taken = sum(matrices) + sum(vectors)
            # Scales that fit float16 take half of what is reckoned: in q4_0, 20 bytes a block of 24.
            assert taken <= device_bytes(checkpoint, dtype) <= taken * 24 / 20


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, 96), dtype=np.uint8)
    words = packed(codes, bits)
    np.testing.assert_array_equal(affine_codes(words, Affine(bits, 32)), codes)
    ones, none = mx.ones((5, 3)), mx.zeros((5, 3))
    np.testing.assert_array_equal(np.array(mx.dequantize(mx.array(words), ones, none, 32, bits)), codes)


@pytest.mark.parametrize(
    ("kind", "due"), [("f32", mx.float32), ("f16", mx.float16), ("bf16", mx.bfloat16), ("q4_k", mx.float16)]
)
def test_activations_are_of_the_dtype_of_the_files_numbers(kind: str, due: mx.Dtype, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, "llama", kind=kind)) as checkpoint:
        assert activation_dtype(checkpoint) == due


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_errs_by_its_own_rounding(dtype: mx.Dtype, tmp_path: Path) -> None:
    path = write_mlx(tmp_path, "qwen3", bits=4)
    tokens = list(range(40))
    exact = Runner(path).last_logits(tokens, [40], [0, 1])[0]
    halved = Runner(path, dtype=dtype).last_logits(tokens, [40], [0, 1])[0]
    # Some 15 roundings to the dtype follow each other and add up as a random walk; 4 standard deviations of that.
    bound = 4 * np.sqrt(15) * float(mx.finfo(dtype).eps) * np.abs(exact).max()
    np.testing.assert_allclose(halved, exact, rtol=0, atol=bound)
