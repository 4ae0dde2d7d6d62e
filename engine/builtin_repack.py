"""GGUF blocks that are affine in MLX's sense, taken apart exactly: codes, scales and biases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.formats import Affine

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Split = tuple[Codes, Floats, Floats]  # (N, values) and twice (N, values / group), in float32 exactly
Blocks = npt.NDArray[Any]


@dataclass(frozen=True)
class Repacked:
    """The affine format that says it, and what takes a block apart."""

    format: Affine
    split: Callable[[Blocks], Split]


def _wide(values: npt.NDArray[Any]) -> Floats:
    return np.ascontiguousarray(values).astype(np.float32)


def _nibbles(qs: Codes) -> Codes:
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _five(b: Blocks) -> Codes:
    high = np.unpackbits(np.ascontiguousarray(b["qh"]), axis=-1, bitorder="little")
    return _nibbles(b["qs"]) | high << np.uint8(4)


def _q4_0(b: Blocks) -> Split:
    return _nibbles(b["qs"]), _wide(b["d"]), _wide(b["d"]) * np.float32(-8)


def _q4_1(b: Blocks) -> Split:
    return _nibbles(b["qs"]), _wide(b["d"]), _wide(b["m"])


def _q5_0(b: Blocks) -> Split:
    return _five(b), _wide(b["d"]), _wide(b["d"]) * np.float32(-16)


def _q5_1(b: Blocks) -> Split:
    return _five(b), _wide(b["d"]), _wide(b["m"])


def _q8_0(b: Blocks) -> Split:
    return np.ascontiguousarray(b["qs"]).view(np.uint8) ^ np.uint8(128), _wide(b["d"]), _wide(b["d"]) * np.float32(-128)


def _k_scales(b: Blocks) -> tuple[Floats, Floats]:
    """Scales and biases (N, 8): an 11-bit mantissa times six bits is exact in float32, and seldom in float16."""
    s = np.ascontiguousarray(b["scales"])  # (N, 12)
    scale = np.concatenate([s[:, :4] & 63, s[:, 8:] & 15 | s[:, :4] >> 2 & 48], axis=-1)
    least = np.concatenate([s[:, 4:8] & 63, s[:, 8:] >> 4 | s[:, 4:8] >> 2 & 48], axis=-1)
    return _wide(b["d"])[:, None] * _wide(scale), -_wide(b["dmin"])[:, None] * _wide(least)


def _q4_k(b: Blocks) -> Split:
    qs = np.ascontiguousarray(b["qs"]).reshape(-1, 4, 32)  # low halves are one group of 32, high halves the next
    return np.stack([qs & 15, qs >> 4], axis=2).reshape(-1, 256), *_k_scales(b)


def _q5_k(b: Blocks) -> Split:
    low, scale, bias = _q4_k(b)
    bits = np.ascontiguousarray(b["qh"])[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return low | (bits << np.uint8(4)).reshape(-1, 256), scale, bias


AFFINE: Mapping[str, Repacked] = {
    "q4_0": Repacked(Affine(4, 32), _q4_0),
    "q4_1": Repacked(Affine(4, 32), _q4_1),
    "q5_0": Repacked(Affine(5, 32), _q5_0),
    "q5_1": Repacked(Affine(5, 32), _q5_1),
    "q8_0": Repacked(Affine(8, 32), _q8_0),
    "q4_k": Repacked(Affine(4, 32), _q4_k),
    "q5_k": Repacked(Affine(5, 32), _q5_k),
}


def packed(codes: Codes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes (R, C) as MLX's words (R, C * bits / 32): one stream of bits, least significant first."""
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint64)
    joined = np.zeros(eights.shape[:2], np.uint64)
    for i in range(8):
        joined |= eights[..., i] << np.uint64(bits * i)
    stream = joined.astype("<u8").view(np.uint8).reshape(*joined.shape, 8)[..., :bits]
    return np.ascontiguousarray(stream).reshape(len(codes), -1).view("<u4")
