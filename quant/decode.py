"""Reference decoders: the slow twin of every kernel, equal in every bit to the format's own definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, Affine, Format

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Blocks = NDArray[np.void]

# Blocks are decoded a batch at a time, so that the intermediates stay in cache and a large matrix costs no copies.
_BATCH = 1 << 12


def dequantise(raw: bytes | U8, name: str) -> F32:
    """The weights (n,) of whole blocks. Each is computed in float32 in the order that ggml computes it."""
    row = FORMATS[name]
    blocks = np.frombuffer(raw, row.record)  # (N,)
    out = np.empty((len(blocks), row.values), np.float32)
    batch = _BATCH if not row.dense else _BATCH * 256
    with np.errstate(all="ignore"):  # a hostile scale may be infinite or NaN
        for at in range(0, len(blocks), batch):
            out[at : at + batch] = _DECODERS[name](blocks[at : at + batch], row).reshape(-1, row.values)
    return out.reshape(-1)


def dequantise_affine(words: NDArray[np.uint32], scales: F32, biases: F32, row: Affine) -> F32:
    """The weights (R, C): float32(float32(scale * code) + bias), whatever dtype the file keeps scales in.

    That is mx.dequantize of the scales and biases cast to float32. Left in float16 or bfloat16, mx.dequantize
    rounds both the product and the sum to that dtype; those roundings are not part of the weights.
    """
    rows, groups = scales.shape
    out = np.empty((rows, groups, row.group), np.float32)
    batch = max(1, _BATCH * 32 // (groups * row.group))
    with np.errstate(all="ignore"):
        for at in range(0, rows, batch):
            part = slice(at, at + batch)
            codes = affine_codes(words[part], row).reshape(-1, groups, row.group)
            np.multiply(codes, scales[part, :, None], out=out[part], dtype=np.float32)
            out[part] += biases[part, :, None]
    return out.reshape(rows, groups * row.group)


def affine_codes(words: NDArray[np.uint32], row: Affine) -> U8:
    """The codes (R, C) of a word plane (R, W). Eight codes fill `bits` whole bytes."""
    raw = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(len(words), -1, row.bits)
    codes = np.empty((*raw.shape[:2], 8), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * row.bits, 8)
        code = raw[..., byte] >> shift
        if shift + row.bits > 8:
            code |= raw[..., byte + 1] << (8 - shift)
        codes[..., i] = code & ((1 << row.bits) - 1)
    return codes.reshape(len(words), -1)


def floats(raw: U8, dtype: str) -> F32:
    """A plane of f32, f16 or bf16 widened to float32."""
    return dequantise(raw, dtype)


def _f32(b: Blocks, row: Format) -> F32:
    return _field(b, "v")


def _f16(b: Blocks, row: Format) -> F32:
    return _half(b, "v")


def _bf16(b: Blocks, row: Format) -> F32:
    return (_field(b, "v").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_0(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * (_nibbles(_field(b, "qs")).astype(np.float32) - np.float32(8))


def _q4_1(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * _nibbles(_field(b, "qs")).astype(np.float32) + _half(b, "m")


def _q5_0(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * (_five_bits(b).astype(np.float32) - np.float32(16))


def _q5_1(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * _five_bits(b).astype(np.float32) + _half(b, "m")


def _q8_0(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * _field(b, "qs").astype(np.float32)


def _q2_k(b: Blocks, row: Format) -> F32:
    scales = _field(b, "scales")
    scale = _half(b, "d") * (scales & 15).astype(np.float32)  # (N, 16)
    least = _half(b, "dmin") * (scales >> 4).astype(np.float32)
    codes = _planes(_field(b, "qs").reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return scale[:, :, None] * codes.astype(np.float32) - least[:, :, None]


def _q3_k(b: Blocks, row: Format) -> F32:
    packed = _field(b, "scales")  # (N, 12): 16 low nibbles in 8 bytes, then 16 high pairs in 4
    scales = _nibbles(packed[:, :8]) | _planes(packed[:, None, 8:], 2).reshape(-1, 16) << 4
    scale: F32 = _half(b, "d") * (scales.astype(np.float32) - np.float32(32))
    low = _planes(_field(b, "qs").reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    high = _planes(_field(b, "hmask").reshape(-1, 1, 32), 1).reshape(-1, 16, 16)
    codes: F32 = (low | high << 2).astype(np.float32) - np.float32(4)  # a clear mask bit subtracts 4
    return scale[:, :, None] * codes


def _q4_k(b: Blocks, row: Format) -> F32:
    scale, least = _scales_and_mins(b)
    codes = _planes(_field(b, "qs").reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return scale[:, :, None] * codes.astype(np.float32) - least[:, :, None]


def _q5_k(b: Blocks, row: Format) -> F32:
    scale, least = _scales_and_mins(b)
    low = _planes(_field(b, "qs").reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    high = _planes(_field(b, "qh").reshape(-1, 1, 32), 1).reshape(-1, 8, 32)
    return scale[:, :, None] * (low | high << 4).astype(np.float32) - least[:, :, None]


def _q6_k(b: Blocks, row: Format) -> F32:
    low = _planes(_field(b, "ql").reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = _planes(_field(b, "qh").reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    codes = (low | high << 4).astype(np.float32) - np.float32(32)
    scale = _half(b, "d") * _field(b, "scales").astype(np.float32)
    return scale[:, :, None] * codes


def _iq4_nl(b: Blocks, row: Format) -> F32:
    return _half(b, "d") * _book(row)[_nibbles(_field(b, "qs"))]


def _iq4_xs(b: Blocks, row: Format) -> F32:
    low = np.stack([_field(b, "scales_l") & 15, _field(b, "scales_l") >> 4], axis=-1).reshape(-1, 8)
    high = (_field(b, "scales_h")[:, None] >> np.arange(0, 16, 2).astype(np.uint16) & 3).astype(np.uint8)
    scale: F32 = _half(b, "d") * ((low | high << 4).astype(np.float32) - np.float32(32))
    codes = _planes(_field(b, "qs").reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
    return scale[:, :, None] * _book(row)[codes]


def _mxfp4(b: Blocks, row: Format) -> F32:
    e = _field(b, "e").astype(np.uint32)
    # Half of 2**(e - 127), the codebook being doubled; the two least exponents are subnormal.
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32)[:, None] * _book(row)[_nibbles(_field(b, "qs"))]


def _field(b: Blocks, name: str) -> NDArray[Any]:
    return np.ascontiguousarray(b[name])


def _half(b: Blocks, name: str) -> F32:
    """A float16 per block as a column (N, 1)."""
    return _field(b, name).astype(np.float32)[:, None]


def _book(row: Format) -> F32:
    return np.array(row.codebook, np.float32)


def _nibbles(qs: U8) -> U8:
    """(N, k) bytes to (N, 2k) codes: all low halves, then all high halves."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _planes(q: U8, bits: int) -> U8:
    """(N, a, k) bytes to (N, a, 8 / bits, k) codes: the lowest bits of all k first."""
    shifts = np.arange(0, 8, bits).astype(np.uint8)[:, None]
    codes: U8 = np.bitwise_and(q[:, :, None, :] >> shifts, np.uint8((1 << bits) - 1))
    return codes


def _five_bits(b: Blocks) -> U8:
    high: U8 = np.unpackbits(_field(b, "qh"), axis=-1, bitorder="little")  # (N, 32)
    return _nibbles(_field(b, "qs")) | high << np.uint8(4)


def _scales_and_mins(b: Blocks) -> tuple[F32, F32]:
    """The eight scales and minima of q4_k and q5_k: six bits each, the last four of each kind split in two places."""
    scales, mins, both = np.split(_field(b, "scales"), 3, axis=-1)  # (N, 4) each
    scale = np.concatenate([scales & 63, both & 15 | scales >> 2 & 48], axis=-1)
    least = np.concatenate([mins & 63, both >> 4 | mins >> 2 & 48], axis=-1)
    return _half(b, "d") * scale.astype(np.float32), _half(b, "dmin") * least.astype(np.float32)


_DECODERS: dict[str, Callable[[Blocks, Format], F32]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
}
