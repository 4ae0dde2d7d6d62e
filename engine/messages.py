"""What server and engine child say to each other; msgpack over a socketpair, one frame a message, never pickle.

A frame is a 4-byte little-endian length and that many bytes of msgpack. The engine knows token ids, not text.
"""

from typing import Literal

import msgspec

Finish = Literal["stop", "length", "cancelled", "expired"]
Tier = Literal["flex", "default", "priority"]
State = Literal["queued", "restoring", "prefill", "decode"]


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
    prefill: Literal["auto", "cpu", "gpu"] = "auto"  # where prompts are computed
    kv: Literal["f16", "bf16", "f32", "q8", "q4"] = "f16"
    kv_memory: int | None = None  # bytes of pages; cache_tokens says the same in tokens
    kv_disk: str | None = None  # a folder for pages that went cold; they survive a restart
    kv_disk_budget: int | None = None  # bytes in it
    max_batch: int = 16


class Asker(msgspec.Struct, frozen=True):
    """Who asks, and what that means for its turn."""

    client: str = ""  # requests of one client share its part of the machine
    tier: Tier = "default"
    salt: str = ""  # pages are shared among requests of one salt only
    patience: float | None = None  # seconds to wait for a first turn; then the sequence ends as "expired"


class Submit(msgspec.Struct, frozen=True, tag=True):
    id: int
    prompt: list[int]
    sampling: Sampling
    asker: Asker = Asker()


class Cancel(msgspec.Struct, frozen=True, tag=True):
    id: int


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A Report, please; one comes for each."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish nothing more and leave."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. Limits that the server checks requests against, and what was measured while loading."""

    context: int  # tokens that one sequence may have, prompt and answer
    pages: int
    page_size: int
    device: str
    seconds: float
    prefill: Literal["cpu", "gpu"] = "cpu"  # where prompts are computed,
    reason: str = ""  # and why
    answers_serve: bool = True  # an answer's pages serve the prompt of the next turn


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


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What a sequence took: prompt tokens whose keys and values were there already, and seconds."""

    cached: int
    queued: float  # until its first turn
    prefill: float  # from then to its first token
    decode: float  # from then to its last


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """News of one sequence after a step. The token that stopped it (a stop token) is among the tokens.

    The cost comes with the finish. One that expired had no turn, and no cost.

    A fault ends a sequence that cannot go on; the client raises it as an EngineError.
    """

    id: int
    tokens: tuple[Sampled, ...]
    finish: Finish | None = None
    fault: str | None = None
    cost: Cost | None = None


class RequestState(msgspec.Struct, frozen=True):
    """A sequence as it stands."""

    id: int
    state: State
    client: str
    tier: Tier
    prompt: int  # tokens
    computed: int  # tokens whose keys and values are in pages
    cached: int  # prompt tokens that did not have to be computed
    answered: int  # tokens
    pages: int
    seconds: float  # since it came


class DiskState(msgspec.Struct, frozen=True):
    pages: int  # on disk
    bytes: int
    budget: int
    stored: int  # pages written, found and refused since the start
    restored: int
    refused: int  # files that were not what they should be
    off: str | None  # why the tier stores nothing any more


class CacheState(msgspec.Struct, frozen=True):
    """Every page is free, held or cached; the three sum to `pages`. Counts are since the start."""

    page_size: int
    pages: int
    free: int
    held: int
    cached: int
    shared: int  # held pages that more than one sequence holds
    looked_up: int  # prompt tokens that were looked for
    found: int  # and those found
    copied: int  # pages copied because a prompt parts from another within a page
    evicted: int
    preempted: int  # sequences that gave their turn back for want of pages
    disk: DiskState | None


class Report(msgspec.Struct, frozen=True, tag=True):
    """The engine between two steps."""

    requests: tuple[RequestState, ...]
    cache: CacheState


class Step(msgspec.Struct, frozen=True, tag=True):
    """All that one step brought, in one message."""

    deltas: tuple[Delta, ...]


ToEngine = Submit | Cancel | Ask | Stop
FromEngine = Ready | Fault | Step | Report
