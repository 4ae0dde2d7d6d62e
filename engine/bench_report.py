"""What `puna bench` asks of the process that measures, and what that answers: msgspec structs, JSON on the way."""

import msgspec

from engine.messages import EngineSpec


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    spec: EngineSpec
    context: int  # tokens of the long measurements; fewer where the model or the memory takes fewer
    repeat: int  # samples of each measurement
    steps: int  # tokens that a sample of decoding makes
    prompt: int  # tokens of the short prefill


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: tokens a second of all its sequences together, medians over the bursts of all samples.

    A burst's roofline comes from the memory's rate just before and after it. One that memory limits is unsteady where
    the two differ by more than a quarter, and then counts for no share or roofline, unless all are.
    """

    name: str
    sequences: int
    context: int  # tokens before the measured ones
    tokens: int  # that a sample took
    bursts: int
    unsteady: int
    median: float
    best: float
    worst: float
    roofline: float | None = None  # tokens a second
    share: float | None = None
    limit: str | None = None  # memory or arithmetic, whichever gives the roofline
    published_roofline: float | None = None  # from the bandwidth that the chip's maker publishes
    published_share: float | None = None
    published_limit: str | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and operations a second of all threads together."""

    read_median: float | None
    read_best: float | None
    int8_peak: float | None
    fp32_peak: float | None
    chip: str | None
    published_bandwidth: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    model: str
    weight_bytes: int  # read for each token
    device: str
    kernels: str | None
    threads: int | None
    machine: Machine
    lines: tuple[Line, ...]
