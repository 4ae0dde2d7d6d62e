"""What server and engine child say to each other; msgpack over a socketpair, one frame a message, never pickle.

A frame is a 4-byte little-endian length and that many bytes of msgpack. The engine knows token ids, not text.
"""

from typing import Literal

import msgspec

Finish = Literal["stop", "length", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence chooses its tokens. Checked by the server; the engine trusts it."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0  # 64 bits; the stream of random numbers is a function of (seed, index of the token)
    stop_tokens: tuple[int, ...] = ()
    logprobs: int | None = None  # how many alternatives to report; None is no logprobs at all


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to load; the first frame it reads. What is None is chosen while loading."""

    path: str
    context: int | None = None  # tokens that one sequence may have
    cache_tokens: int | None = None  # tokens that all sequences together may keep in pages
    threads: int | None = None  # of the CPU; one for each fast physical core if not told
    device: Literal["auto", "cpu", "builtin"] = "auto"
    kv: Literal["f16", "bf16", "f32"] = "f16"
    max_batch: int = 16


class Submit(msgspec.Struct, frozen=True, tag=True):
    id: int
    prompt: list[int]
    sampling: Sampling


class Cancel(msgspec.Struct, frozen=True, tag=True):
    id: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish nothing more and leave."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. Limits that the server checks requests against, and what was measured while loading."""

    context: int  # tokens that one sequence may have, prompt and answer
    pages: int
    page_size: int
    device: str
    seconds: float


class Fault(msgspec.Struct, frozen=True, tag=True):
    """The child leaves after this: the model could not be loaded, or a step failed. `kind` names the class of error."""

    kind: str
    text: str
    path: str | None = None  # of a ModelFileError


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    token: int
    logprob: float


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    """A token of a sequence, with its logprob and alternatives when they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """News of one sequence after a step. The token that stopped it (a stop token) is among the tokens.

    A fault ends a sequence that cannot go on; the client raises it as an EngineError.
    """

    id: int
    tokens: tuple[Sampled, ...]
    finish: Finish | None = None
    fault: str | None = None


class Step(msgspec.Struct, frozen=True, tag=True):
    """All that one step brought, in one message."""

    deltas: tuple[Delta, ...]


ToEngine = Submit | Cancel | Stop
FromEngine = Ready | Fault | Step
