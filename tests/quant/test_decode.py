"""Reference decoders equal the gguf package and mx.dequantize, bit for bit."""

import subprocess
import sys

import gguf
import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from quant.decode import affine_codes, dequantise, dequantise_affine, floats
from quant.formats import AFFINE, FORMATS, Affine, Format
from tests.quant.outside import ROOT

every_format = pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
every_affine = pytest.mark.parametrize("row", AFFINE.values(), ids=lambda row: row.name)

# Of the dtypes that MLX keeps scales in, and the bits that each gives a significand.
SCALES = {mx.float32: 24, mx.float16: 11, mx.bfloat16: 8}
every_scale = pytest.mark.parametrize("dtype", SCALES, ids=str)


def raw(row: Format, blocks: int = 500) -> NDArray[np.uint8]:
    """Random bytes: every code, and among the scales infinities, NaNs, zeros of both signs and subnormals."""
    return np.random.default_rng(row.gguf).integers(0, 256, blocks * row.bytes, np.uint8)


def theirs(data: NDArray[np.uint8], row: Format) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # the oracle too meets infinite scales
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(row.gguf)).reshape(-1)


def assert_same_bits(ours: NDArray[np.float32], oracle: NDArray[np.float32]) -> None:
    """Equal bits, signs of zeros included; a NaN need only be a NaN."""
    assert ours.dtype == oracle.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(oracle))
    np.testing.assert_array_equal(
        np.where(np.isnan(ours), 0, ours.view(np.uint32)), np.where(np.isnan(oracle), 0, oracle.view(np.uint32))
    )


@every_format
def test_agrees_with_gguf_on_any_bytes(row: Format) -> None:
    data = raw(row)
    assert_same_bits(dequantise(data.tobytes(), row.name), theirs(data, row))


@every_format
def test_agrees_with_gguf_on_every_scale(row: Format) -> None:
    """All 65,536 float16 (or 256 e8m0) scales, so that no exponent escapes."""
    scale = row.fields[0].name if row.dense else next(f.name for f in row.fields if f.name in ("d", "e"))
    patterns = 1 << 8 * np.dtype(row.record[scale].base).itemsize if row.name != "f32" else 1 << 16
    blocks = np.resize(raw(row, 64), patterns * row.bytes).view(row.record)
    unsigned = np.dtype(f"<u{row.record[scale].itemsize}")
    blocks[scale] = np.arange(patterns, dtype=unsigned).view(row.record[scale].base)
    data = blocks.view(np.uint8)
    assert_same_bits(dequantise(data, row.name), theirs(data, row))


@every_format
def test_blocks_are_decoded_apart(row: Format) -> None:
    """A batch boundary inside the decoder changes nothing, nor does the place of a block."""
    data = raw(row, 9000)
    whole = dequantise(data, row.name)
    cut = 4097 * row.bytes
    assert_same_bits(whole, np.concatenate([dequantise(data[:cut], row.name), dequantise(data[cut:], row.name)]))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "f16", "bf16"])
def test_what_gguf_quantises_we_decode(name: str) -> None:
    row = FORMATS[name]
    weights = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(row.gguf)).view(np.uint8).reshape(-1)
    assert_same_bits(dequantise(data, name), theirs(data, row))


@every_format
def test_nothing_decodes_to_nothing(row: Format) -> None:
    assert dequantise(b"", row.name).shape == (0,)


def planes(row: Affine, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Random words, and scales and biases of ordinary size."""
    rng = np.random.default_rng(row.bits * row.group)
    rows, cols = 37, 384
    words = rng.integers(0, 1 << 32, (rows, cols * row.bits // 32), np.uint32)
    scales, biases = rng.normal(size=(2, rows, cols // row.group)).astype(np.float32)
    return mx.array(words), mx.array(scales).astype(dtype), mx.array(biases).astype(dtype)


def widened(array: mx.array) -> NDArray[np.float32]:
    return np.array(array.astype(mx.float32))


def ours(words: mx.array, scales: mx.array, biases: mx.array, row: Affine) -> NDArray[np.float32]:
    return dequantise_affine(np.array(words), widened(scales), widened(biases), row)


@every_scale
@every_affine
def test_agrees_with_mlx_on_widened_scales(row: Affine, dtype: mx.Dtype) -> None:
    words, scales, biases = planes(row, dtype)
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    oracle = np.array(mx.dequantize(words, *wide, group_size=row.group, bits=row.bits))
    assert_same_bits(ours(words, scales, biases, row), oracle)


@every_scale
@every_affine
def test_mlx_rounds_product_and_sum_to_the_dtype_of_the_scales(row: Affine, dtype: mx.Dtype) -> None:
    """The stated difference between mx.dequantize and the definition here, exactly; none for float32."""
    words, scales, biases = planes(row, dtype)
    oracle = mx.dequantize(words, scales, biases, group_size=row.group, bits=row.bits)
    assert oracle.dtype == dtype
    codes = affine_codes(np.array(words), row).astype(np.float32).reshape(37, -1, row.group)
    # The product of a code and a narrow scale is exact in float32, so rounding it is rounding the true product.
    products = rounded(codes * widened(scales)[..., None], dtype)
    sums = rounded(products + widened(biases)[..., None], dtype)
    assert_same_bits(sums.reshape(37, -1), widened(oracle))


def rounded(values: NDArray[np.float32], dtype: mx.Dtype) -> NDArray[np.float32]:
    return widened(mx.array(values).astype(dtype))


@every_scale
@every_affine
def test_mlx_differs_from_the_definition_by_its_two_roundings_at_most(row: Affine, dtype: mx.Dtype) -> None:
    words, scales, biases = planes(row, dtype)
    theirs = widened(mx.dequantize(words, scales, biases, group_size=row.group, bits=row.bits))
    largest = np.abs(widened(scales)).max() * (1 << row.bits) + np.abs(widened(biases)).max()
    # Product and sum lie below `largest`, and each rounding errs by half a unit in the last place of it.
    half_unit = largest * 2.0 ** -SCALES[dtype]
    assert np.abs(theirs - ours(words, scales, biases, row)).max() <= 2 * half_unit


@every_affine
def test_what_mlx_quantises_we_decode(row: Affine) -> None:
    weights = mx.array(np.random.default_rng(2).normal(size=(8, 512)).astype(np.float32))
    words, scales, biases = mx.quantize(weights, group_size=row.group, bits=row.bits)
    oracle = np.array(mx.dequantize(words, scales, biases, group_size=row.group, bits=row.bits))
    assert_same_bits(ours(words, scales, biases, row), oracle)


@every_affine
def test_codes_are_one_stream_of_bits_in_each_row(row: Affine) -> None:
    words = np.random.default_rng(3).integers(0, 1 << 32, (3, row.group * row.bits // 32), np.uint32)
    for line, codes in zip(words, affine_codes(words, row), strict=True):
        stream = int.from_bytes(line.astype("<u4").tobytes(), "little")
        assert codes.tolist() == [stream >> i * row.bits & (1 << row.bits) - 1 for i in range(row.group)]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_narrow_floats_widen_exactly(dtype: mx.Dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    oracle = np.array(mx.array(bits).view(dtype).astype(mx.float32))
    assert_same_bits(floats(bits.view(np.uint8), {mx.float16: "f16", mx.bfloat16: "bf16"}[dtype]), oracle)


def test_the_section_needs_no_mlx() -> None:
    """The server process reads model files and must stay small."""
    modules = ", ".join(f"quant.{path.stem}" for path in sorted((ROOT / "quant").glob("[a-z]*.py")))
    check = f"import sys, {modules}; assert not [m for m in sys.modules if m.split('.')[0] in ('mlx', 'gguf')]"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
