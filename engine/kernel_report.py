"""What `puna kernels` is told by the process that has the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.verdicts import Finding


@dataclass(frozen=True)
class KernelReport:
    """`chip` is None where there is no GPU that our kernels run on."""

    chip: str | None
    mlx: str
    path: str | None  # of the file of verdicts
    findings: Mapping[str, Finding]
