"""The child process of `puna kernels`: asks the file of verdicts, or finds them anew."""

import logging
import sys
from collections.abc import Iterable
from importlib.metadata import version

import msgspec

from engine.kernel_report import KernelReport
from engine.metal.device import supervisor, usable, verdict_file
from engine.metal.products import Subject, operation

# What most models are made of, for a machine on which nothing was tried yet.
COMMON = [f"product {kind} large float16" for kind in ("q4_k", "q6_k", "q8_0", "affine4_64-f16")]


def main() -> None:
    """Standard input says "show" or "retune"; standard output gets a KernelReport."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(msgspec.json.encode(report(retune=sys.stdin.read() == "retune")).decode())


def report(*, retune: bool) -> KernelReport:
    if not usable():
        return KernelReport(None, version("mlx"), None, {})
    file = verdict_file()
    if retune:
        subjects = subjects_of(file.read().findings.keys() or COMMON)
        fresh = supervisor(retune=True)
        for subject in subjects:
            fresh.choice(operation(subject))
    path = None if file.path is None else str(file.path)
    return KernelReport(file.machine.chip, version("mlx"), path, file.read().findings)


def subjects_of(keys: Iterable[str]) -> list[Subject]:
    """Names of an older version that mean nothing any more are left out."""
    found = []
    for key in keys:
        try:
            found.append(Subject.named(key))
        except (KeyError, ValueError):
            logging.info("%s: unknown, left out", key)
    return found
