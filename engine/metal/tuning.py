"""The child process of `puna kernels`: asks the file of verdicts, or finds them anew."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import msgspec

from engine.kernel_report import KernelReport
from engine.metal import attending, layering, products
from engine.metal.device import supervisor, usable, verdict_file
from engine.supervisor import Supervisor

# What most models are made of, for a machine on which nothing was tried yet.
COMMON = [f"product {kind} large float16" for kind in ("q4_k", "q6_k", "affine4_64-f16")]
COMMON += [f"attention {phase} 32/8x128 window None float16 over float16" for phase in ("decode", "prompt")]
COMMON += [
    "layer norm 4096 float16",
    "layer gate 14336 float16",
    "layer rope 32/8x128 turns 128 pairs plain float16 over float16",
]


def main() -> None:
    """Standard input says "show" or "retune"; standard output gets a KernelReport."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(msgspec.json.encode(report(retune=sys.stdin.read() == "retune")).decode())


def report(*, retune: bool) -> KernelReport:
    if not usable():
        return KernelReport(None, version("mlx"), None, {})
    file = verdict_file()
    if retune:
        keys = list(file.read().findings) or COMMON
        fresh = supervisor(retune=True)
        for key in keys:
            tried(fresh, key)
    path = None if file.path is None else str(file.path)
    return KernelReport(file.machine.chip, version("mlx"), path, file.read().findings)


def tried(fresh: Supervisor, key: str) -> None:
    """A name of an older version, which means nothing any more, is left out."""
    try:
        tune = _OF[key.partition(" ")[0]](fresh, key)
    except (KeyError, ValueError):
        logging.info("%s: unknown, left out", key)
        return
    tune()


def _attention(fresh: Supervisor, key: str) -> Callable[[], object]:
    return partial(fresh.choice, attending.named(key))


def _layer(fresh: Supervisor, key: str) -> Callable[[], object]:
    return partial(fresh.choice, layering.named(key))


def _product(fresh: Supervisor, key: str) -> Callable[[], object]:
    return partial(fresh.choice, products.operation(products.Subject.named(key)))


_OF = {"attention": _attention, "layer": _layer, "product": _product}
