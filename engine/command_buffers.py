"""Command buffers: how much work MLX hands a Mac's GPU at once. Read once, when MLX first meets the GPU."""

import os
import re
from collections.abc import Mapping

from engine.chips import chip, machine_memory

OPERATIONS = "MLX_MAX_OPS_PER_BUFFER"
MILLIONS = "MLX_MAX_MB_PER_BUFFER"  # of elements, whatever its name says

LARGE = 32 * 2**30  # bytes of memory, from which on longer buffers may hold more activations


def settings(name: str | None, memory: int) -> dict[str, str]:
    """For a chip of this name; nothing for those that nobody measured, or measured to be slower with it.

    A decode pass of a model is 500 to 2,000 operations, and MLX cuts it after 40 or 50, or after as many million
    elements. Each cut costs some 20 microseconds (docs/placement.md).
    """
    found = re.fullmatch(r"Apple M([1-4])(?: .*)?", name or "")
    if found is None:
        return {}
    return {OPERATIONS: "1000"} | ({MILLIONS: "400"} if memory >= LARGE else {})


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What an engine's process gets beside what was given, which is never overruled."""
    return {key: value for key, value in settings(chip(), machine_memory()).items() if key not in given}
