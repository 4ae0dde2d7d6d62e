"""The Apple GPU as this process has it."""

from importlib.metadata import version

import mlx.core as mx

from engine.chips import chip
from engine.supervisor import Supervisor
from engine.verdicts import Machine, VerdictFile, cache_folder


def usable() -> bool:
    """Kernels of ours can run, and are where the rest runs."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def verdict_file() -> VerdictFile:
    return VerdictFile(cache_folder(), Machine.here(chip() or "unknown chip", version("mlx")))


def supervisor(*, retune: bool = False) -> Supervisor:
    return Supervisor(verdict_file(), retune=retune)
