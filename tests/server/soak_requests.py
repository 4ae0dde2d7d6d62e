"""Requests of every kind, each a function of its number: what is asked, what is done to it, and what must come back."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tests.server.asking import CHAT, COMPLETE
from tests.server.wire import events_of, json_of, post, status_of

Json = dict[str, Any]
Fate = Literal["answered", "refused", "half sent", "left at once", "left soon", "left in mid-stream"]

_WORDS = (" the", " and", " llama", " puna", " of", " to", " in", " is", " what", " you", " on", " grass", " high")
_ENCODER = msgspec.json.Encoder()
_LEAVING: Sequence[Fate] = ("half sent", "left at once", "left soon", "left soon", "left in mid-stream")

# What a request may not say, laid over one that is fine.
_FAULTS: Sequence[Json] = (
    {"temperature": 3},
    {"n": 0},
    {"stop": [""]},
    {"max_tokens": 0},
    {"seed": "one"},
    {"logit_bias": {"320": 1}},
    {"service_tier": "soon"},
    {"cache_salt": 7},
    {"response_format": {"type": "json_object"}},
    {"timeout": -1},
    {"guided_regex": "a*"},
)


@dataclass(frozen=True)
class Asked:
    """A request as it is sent. `moment` of its fate: seconds, or events of a stream, or a share of its bytes."""

    number: int
    path: str
    body: Json
    headers: str
    fate: Fate
    moment: float

    @property
    def bytes(self) -> bytes:
        return post(self.path, _ENCODER.encode(self.body), self.headers)

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def repeatable(self) -> bool:
        """An answer to it is the same each time; one that was late once may come in time."""
        return "seed" in self.body and "timeout" not in self.body


@dataclass
class Said:
    """A choice, as far as law 1 speaks of it."""

    text: str = ""
    logprobs: tuple[float, ...] = ()
    finish: str | None = None


def words(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(_WORDS, k=count))


# What several clients begin their prompts with: of 60 to 350 tokens.
_COMMON = [words(random.Random(f"common {i}"), 60 + 40 * i) for i in range(8)]


def asked(number: int) -> Asked:
    rng = random.Random(number)
    path = rng.choice((CHAT, COMPLETE))
    body = {**_prompt(rng, path), **_manner(rng, path), **_terms(rng)}
    if rng.random() < 0.8:
        body["seed"] = number
    fate: Fate = "answered"
    if rng.random() < 0.05:
        fate = "refused"
        body |= rng.choice(_FAULTS)
    elif rng.random() < 0.25:
        fate = rng.choice(_LEAVING)
        body["stream"] = fate == "left in mid-stream" or rng.random() < 0.5
    moment = float(rng.randrange(1, 12)) if fate == "left in mid-stream" else rng.random() * 0.05
    return Asked(number, path, body, f"Authorization: Bearer {rng.randrange(4)}\r\n", fate, moment)


def _prompt(rng: random.Random, path: str) -> Json:
    """Mostly what many have said before, up to some word, and then something of its own."""
    common = rng.choice(_COMMON)
    text = common[: rng.randrange(len(common))] if rng.random() < 0.7 else ""
    text += words(rng, rng.choice((1, 3, 10, 40)))
    if path == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    match rng.randrange(4):
        case 0:
            return {"prompt": [rng.randrange(317) for _ in range(rng.randrange(1, 40))]}
        case 1:
            return {"prompt": [text, words(rng, 5)]}
        case _:
            return {"prompt": text}


def _manner(rng: random.Random, path: str) -> Json:
    manner: Json = {"max_tokens": rng.choice((1, 4, 8, 16, 16, 100)), "stream": rng.random() < 0.5}
    if rng.random() < 0.7:
        manner["temperature"] = rng.choice((0, 0.7, 1, 1.5))
    if rng.random() < 0.15:
        manner["n"] = rng.randrange(1, 4)
    if rng.random() < 0.2:
        manner["stop"] = rng.choice(("e", [" the", "a"], ["q", " puna", "!"]))
    if rng.random() < 0.15:
        manner |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    if rng.random() < 0.2:
        manner |= rng.choice(({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"frequency_penalty": 0.5}))
    if manner["stream"] and rng.random() < 0.3:
        manner["stream_options"] = {"include_usage": True}
    return manner


def _terms(rng: random.Random) -> Json:
    terms: Json = {}
    if rng.random() < 0.5:
        terms["service_tier"] = rng.choice(("flex", "default", "priority"))
    if rng.random() < 0.3:
        terms["cache_salt"] = rng.choice(("a", "b"))
    if rng.random() < 0.3:
        terms["prompt_cache_key"] = rng.choice(("x", "y"))
    if rng.random() < 0.03:
        terms["timeout"] = rng.choice((0.001, 0.02))
    if rng.random() < 0.1:
        terms["timings"] = True
    return terms


def heard(one: Asked, reply: bytes) -> list[Said]:
    """The choices of a reply that is as it must be; none of one that was refused, or waited as long as it cared to."""
    status = status_of(reply)
    if one.fate == "refused":
        assert status == 400, (one, reply)
        return []
    events = events_of(reply) if one.streams and status == 200 else [json_of(reply)]
    if "timeout" in one.body and "error" in events[-1]:  # in a stream, when some choices had their turn
        assert events[-1]["error"]["code"] == "queue_timeout", reply
        return []
    assert status == 200, (one, reply)
    said = _joined(one, events)
    prompt = one.body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], str) else 1
    assert len(said) == prompts * one.body.get("n", 1), (one, said)
    assert all(choice.finish in ("stop", "length") for choice in said), (one, said)
    stops = one.body.get("stop", [])
    assert not any(stop in choice.text for choice in said for stop in stops), (one, said)
    return said


def _joined(one: Asked, events: list[Any]) -> list[Said]:
    said: dict[int, Said] = {}
    for event in events:
        assert "error" not in event, (one, event)
        for piece in event["choices"]:
            choice, news = said.setdefault(piece["index"], Said()), _whole(piece)
            choice.text += news.text
            choice.logprobs += news.logprobs
            choice.finish = news.finish or choice.finish
    return [said[index] for index in sorted(said)]


def _whole(choice: Json) -> Said:
    content = choice.get("message") or choice.get("delta") or {}
    text = choice["text"] if "text" in choice else content.get("content") or ""
    return Said(text, _logprobs(choice["logprobs"]), choice["finish_reason"])


def _logprobs(told: Json | None) -> tuple[float, ...]:
    if told is None:
        return ()
    if "content" in told:
        return tuple(token["logprob"] for token in told["content"])
    return tuple(told["token_logprobs"])
