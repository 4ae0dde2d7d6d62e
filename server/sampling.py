"""From what a request says of sampling to what the engine does, one sequence at a time."""

from secrets import randbits
from typing import TypeVar

from engine.messages import Sampling
from server.errors import ContextTooLong, InvalidRequest
from server.honesty import Warnings, warning
from server.schema import GenerationRequest
from server.served import Served

_MASK = 2**64 - 1
N = TypeVar("N", int, float)


def room_after(prompt: int, served: Served, param: str) -> int:
    """How many tokens may follow a prompt of that length; at least one, else ContextTooLong."""
    context = served.engine.ready.context
    if prompt >= context:
        raise ContextTooLong(prompt, context, param)
    return context - prompt


def answer_tokens(
    name: str, asked: int | None, prompt: int, served: Served, warnings: Warnings, prompt_name: str
) -> int:
    """How many tokens an answer has at most: what was asked for, if there is room; a warning says when there is not."""
    room = room_after(prompt, served, prompt_name)
    if asked is None:
        return room
    if asked > room:
        context = served.engine.ready.context
        why = f"of {asked} is more than the {room} that the prompt of {prompt} leaves of the context of {context}"
        warnings.append(warning(name, f"{why}; it is {room}"))
    return min(asked, room)


def seed_of(body: GenerationRequest) -> int:
    """The request's seed as 64 bits; a fresh one when it names none."""
    return randbits(64) if body.seed is None else body.seed & _MASK


def seed_of_choice(seed: int, choice: int) -> int:
    """Choice 0 has the request's own seed, so that n does not change it; others are far from it and each other."""
    if choice == 0:
        return seed
    x = (seed + choice * 0x9E3779B97F4A7C15) & _MASK  # splitmix64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def biases_of(body: GenerationRequest, served: Served) -> dict[int, float]:
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    size = served.card.tokenizer.size
    for token in biases:
        if token >= size:
            raise InvalidRequest(f"logit_bias: token {token} is not in the vocabulary of {size}", "logit_bias")
    return biases


def sampling_of(
    body: GenerationRequest, served: Served, *, max_tokens: int, logprobs: int | None, seed: int
) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=_or(body.temperature, 1.0),
        top_k=max(_or(body.top_k, 0), 0),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        logit_bias=biases_of(body, served),
        seed=seed,
        stop_tokens=tuple(sorted(served.card.tokenizer.ends)),
        logprobs=logprobs,
    )


def _or(value: N | None, default: N) -> N:
    return default if value is None else value
