"""The terms of a request: who asks, how soon it is served, what it is warned of, and what it wants to be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from secrets import token_bytes

from starlette.requests import Request

from engine.messages import Asker, Tier
from server.errors import InvalidRequest
from server.honesty import Rule, Warnings, examine, warning
from server.recall import Conversation
from server.schema import GenerationRequest

TIMINGS = "puna-timings"

# A key is only ever seen as this hash, which says nothing about it: its own key is another in every process.
_SECRET = token_bytes(32)

# The API's names; it, too, answers "fast" with "priority", and "scale" without a contract with "default".
_TIERS: Mapping[str, Tier] = {
    "auto": "default",
    "default": "default",
    "scale": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}


@dataclass(frozen=True)
class Terms:
    """`tier` is told in the reply when the request named one."""

    asker: Asker
    warnings: Warnings
    tier: Tier | None
    timed: bool
    conversation: Conversation

    @property
    def told(self) -> dict[str, object]:
        return {"service_tier": self.tier} if self.tier else {}


def terms_of(
    body: GenerationRequest, request: Request, rules: Mapping[str, Rule], queue_time: float | None = None
) -> Terms:
    """Raises what honesty refuses. No request waits longer than `queue_time`, if there is one."""
    warnings = examine(body, rules)
    tier = _TIERS[body.service_tier] if body.service_tier else None
    if body.service_tier == "scale":
        warnings.append(warning("service_tier", "scale needs a contract; this server has none, and default was used"))
    patience = _patience(body.timeout, queue_time, warnings)
    asker = Asker(client_of(request), tier or "default", body.cache_salt or "", patience)
    conversation = (asker.salt, asker.client, body.prompt_cache_key or "")
    return Terms(asker, warnings, tier, bool(body.timings) or _timed(request), conversation)


def client_of(request: Request) -> str:
    """Whose part of the machine a request takes: its bearer token's, else its address's."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return f"key-{blake2b(token.strip().encode(), digest_size=5, key=_SECRET).hexdigest()}"
    return request.client.host if request.client else "local"


def _patience(asked: float | None, most: float | None, warnings: Warnings) -> float | None:
    if asked is None or most is None or asked <= most:
        return most if asked is None else asked
    warnings.append(warning("timeout", f"of {asked:g} s is more than requests may wait here; it is {most:g} s"))
    return most


def _timed(request: Request) -> bool:
    value = request.headers.get(TIMINGS, "0")
    if value not in ("0", "1"):
        raise InvalidRequest(f"the header {TIMINGS}: 0 or 1, not {value[:40]!r}", TIMINGS)
    return value == "1"
