"""Numbers as arrays of the GPU hold them, written and read by numpy: the slow twin of how pages are written."""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.metal.attention import GROUP, Pages

Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

# What the indices of q4 stand for, and what a code of q8 is at most.
CODEBOOK = np.array([-113, -89, -69, -53, -38, -25, -13, -2, 8, 20, 32, 46, 62, 80, 100, 127], np.float32)
LARGEST = np.float32(127)
LEAST = np.float32(2.0**-100)  # a group that is smaller counts as zero, so that no scale's inverse is infinite
NOT_A_NUMBER = 0x7FC0


def narrowed(x: npt.NDArray[np.floating[Any]], dtype: str) -> Array:
    """To the nearest; bfloat16 as its bits, for numpy has none."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    wide = x.astype(np.float32).view(np.uint32)
    nearest = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(NOT_A_NUMBER), nearest)


def widened(stored: Array, dtype: str) -> Doubles:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def coded(x: npt.NDArray[np.floating[Any]], pages: Pages) -> Array:
    """Rows of a page's array (..., row) from numbers (..., Dh)."""
    if pages.bits > 8:
        return narrowed(x, pages.dtype)
    head_dim = x.shape[-1]
    groups = -(-head_dim // GROUP)
    filled = np.zeros((*x.shape[:-1], groups * GROUP), np.float32)
    filled[..., :head_dim] = x
    scales, codes = _codes(filled.reshape(*x.shape[:-1], groups, GROUP), pages.bits)
    rows = np.zeros((*x.shape[:-1], pages.row(head_dim)), np.uint8)
    rows[..., : 2 * groups] = np.ascontiguousarray(scales).view(np.uint8)
    at = pages.codes_at(head_dim)
    if pages.bits == 8:
        rows[..., at:] = codes.reshape(filled.shape)[..., :head_dim].astype(np.int8).view(np.uint8)
    else:
        pairs = codes[..., :16] | codes[..., 16:] << 4
        rows[..., at:] = pairs.reshape(*x.shape[:-1], -1)
    return rows


def decoded(rows: Array, pages: Pages, head_dim: int) -> Doubles:
    """Numbers (..., Dh) of rows (..., row)."""
    if pages.bits > 8:
        return widened(rows, pages.dtype)
    groups, at = -(-head_dim // GROUP), pages.codes_at(head_dim)
    scales = widened(np.ascontiguousarray(rows[..., : 2 * groups]).view(np.uint16), "bfloat16")
    if pages.bits == 8:
        codes = np.zeros((*rows.shape[:-1], groups * GROUP))
        codes[..., :head_dim] = rows[..., at:].view(np.int8)
    else:
        pairs = rows[..., at:].reshape(*rows.shape[:-1], groups, 16)
        codes = CODEBOOK[np.concatenate([pairs & 15, pairs >> 4], axis=-1)].astype(np.float64)
    wide = codes.reshape(*rows.shape[:-1], groups, GROUP) * scales[..., None]
    found: Doubles = wide.reshape(*rows.shape[:-1], -1)[..., :head_dim]
    return found


def _codes(x: npt.NDArray[np.float32], bits: int) -> tuple[npt.NDArray[np.uint16], Array]:
    """Scales (...) as bits of bfloat16 and codes (..., 32), all arithmetic in float32.

    A scale is rounded away from zero, so that no number is more than 127 times its scale. In q4 it has the sign of the
    first of the largest numbers.
    """
    most = np.abs(x).max(-1)
    first = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    peak = most if bits == 8 else first
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales = (((peak / LARGEST).astype(np.float32).view(np.uint32) + 0xFFFF) >> 16).astype(np.uint16)
        scales = np.where(most < LEAST, np.uint16(0), scales)
        inverse = np.float32(1) / (scales.astype(np.uint32) << 16).view(np.float32)
        scaled = x * np.where(most < LEAST, np.float32(0), inverse)[..., None]
        if bits == 8:
            codes: Array = np.nan_to_num(np.rint(scaled)).astype(np.int8)
        else:
            codes = (scaled[..., None] > (CODEBOOK[:-1] + CODEBOOK[1:]) * np.float32(0.5)).sum(-1).astype(np.uint8)
    whole = np.isfinite(x).all(-1)
    return np.where(whole, scales, np.uint16(NOT_A_NUMBER)), np.where((whole & (most >= LEAST))[..., None], codes, 0)
