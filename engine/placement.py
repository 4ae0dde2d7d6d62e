"""Placement: where prompts are computed when the GPU decodes. A function of rates, settled at start, never of load."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.chips import BANDWIDTHS
from engine.pace import PREFILL
from quant.errors import EngineError

Where = Literal["cpu", "gpu"]
Asked = Literal["auto", "cpu", "gpu"]

ASSUMED_CONTENTION = 0.1  # of decoding's rate, that a prompt on the CPU costs it: power and queues; nobody measured it


@dataclass(frozen=True)
class Rates:
    """Of one model on one chip. Tokens a second; `gpu_decode` is passes a second, each of which reads all weights."""

    gpu_prefill: float
    cpu_prefill: float | None  # None: no matrix unit that could do it
    gpu_decode: float
    contention: float = ASSUMED_CONTENTION


@dataclass(frozen=True)
class Placement:
    """Where prompts go, and why, in words for a log. `beside`: answers are computed elsewhere."""

    where: Where
    reason: str
    beside: bool = False


@dataclass(frozen=True)
class Unit:
    """Published rates of a chip, in bytes and operations a second."""

    bandwidth: float
    gpu: float  # what matrix products reach at best, in 16 bits
    sme: float  # of all fast clusters, float32; 0 where there is none


# Teraflops of the largest version's GPU, and of the CPU's SME units: docs/placement.md says where these are from.
_TERAFLOPS = {
    "M1": (2.6, 0),
    "M1 Pro": (5.2, 0),
    "M1 Max": (10.4, 0),
    "M1 Ultra": (20.8, 0),
    "M2": (3.6, 0),
    "M2 Pro": (6.8, 0),
    "M2 Max": (13.6, 0),
    "M2 Ultra": (27.2, 0),
    "M3": (4.1, 0),
    "M3 Pro": (7.4, 0),
    "M3 Max": (16.4, 0),
    "M3 Ultra": (32.8, 0),
    "M4": (4.6, 2),
    "M4 Pro": (9.2, 4),
    "M4 Max": (18.4, 4),
    "M5": (16, 2),
    "M5 Pro": (33, 6),
    "M5 Max": (66, 6),
}
CHIPS: Mapping[str, Unit] = {
    f"Apple {name}": Unit(BANDWIDTHS[f"Apple {name}"], gpu * 1e12, sme * 1e12)
    for name, (gpu, sme) in _TERAFLOPS.items()
}
GPU_SHARE = 0.63  # of its peak that prefill reaches: llama.cpp's on an M4 and an M4 Pro
SME_SHARE = 0.76  # of float32's peak with 4-bit weights decoded while they are packed (docs/sme.md)
DECODE_SHARE = 0.8  # of the memory's rate


def expected(unit: Unit, operations: float, weights: float) -> Rates:
    """On paper, for a model that takes so many operations for a token and so many bytes of weights for a pass."""
    return Rates(
        gpu_prefill=GPU_SHARE * unit.gpu / operations,
        cpu_prefill=SME_SHARE * unit.sme / operations if unit.sme else None,
        gpu_decode=DECODE_SHARE * unit.bandwidth / weights,
    )


def place(rates: Rates) -> Placement:
    """Whichever choice loses less where it is the wrong one.

    A user who is alone waits 1/s times as long for a first token if prompts go to a CPU of s times the GPU's rate. With
    several, prompts on the GPU forgo up to s + 1 - c times the throughput, c being what decoding loses by contention.
    """
    if rates.cpu_prefill is None:
        return Placement("gpu", "the CPU has no matrix unit for prompts")
    s = rates.cpu_prefill / rates.gpu_prefill
    c = contention(rates)
    if c >= 1:
        return Placement("gpu", "beside prompts on the CPU decoding would stand still")
    wrong_cpu, wrong_gpu = max(1 / s, 1 / (1 - c)), s + 1 - c
    where: Where = "cpu" if wrong_cpu < wrong_gpu else "gpu"
    return Placement(
        where,
        f"the CPU takes prompts at {s:.2f} of the GPU's rate: if they went there, one user would wait "
        f"{wrong_cpu:.2f} times as long, and if not, several would get up to {wrong_gpu:.2f} times less",
    )


def contention(rates: Rates) -> float:
    """The part of decoding's rate that is lost beside a prompt on the CPU.

    At least the memory's share: a pass of prompts reads all weights once, as does a pass of decoding.
    """
    assert rates.cpu_prefill is not None, "somebody computes beside"
    return max(rates.contention, rates.cpu_prefill / PREFILL / rates.gpu_decode)


def settle(asked: Asked, chip: str, operations: float, weights: float, *, on_gpu: bool, native: bool) -> Placement:
    """Where prompts go, or EngineError if that cannot be had. A model of the CPU's own kernels (`native`) has one
    place only; one that MLX's kernels compute on a CPU stands in for a GPU if asked."""
    if not on_gpu and asked == "gpu":
        raise EngineError("--prefill gpu: the model is on the CPU")
    if native or (not on_gpu and asked == "auto"):
        return Placement("cpu", "the model is there")
    if asked == "cpu":
        return Placement("cpu", "as asked", beside=True)
    if asked == "gpu":
        return Placement("gpu", "as asked")
    unit = CHIPS.get(chip)
    if unit is None or not unit.sme:
        return Placement("gpu", "the CPU has no matrix unit for prompts" if unit else "the chip's rates are not known")
    found = place(expected(unit, operations, weights))
    return replace(found, beside=found.where == "cpu")
