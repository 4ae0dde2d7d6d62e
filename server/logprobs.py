"""Logprobs in the two shapes of the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.messages import Sampled
from models.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Sampled]) -> dict[str, object]:
    return {
        "content": [
            {
                **_entry(tokenizer, sampled.token, sampled.logprob),
                "top_logprobs": [_entry(tokenizer, top.token, top.logprob) for top in sampled.top],
            }
            for sampled in tokens
        ],
        "refusal": None,
    }


@dataclass(frozen=True)
class CompletionLogprobs:
    tokens: list[str]
    wire: dict[str, object]


def completion_logprobs(tokenizer: Tokenizer, sampled: Sequence[Sampled], offset: int) -> CompletionLogprobs:
    """Offsets count characters of the choice's text, of which `offset` came before."""
    texts = [_text(tokenizer, one.token) for one in sampled]
    begins = accumulate(map(len, texts[:-1]), initial=offset)
    wire: dict[str, object] = {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in sampled],
        "top_logprobs": [_alternatives(tokenizer, one) for one in sampled],
        "text_offset": list(begins),
    }
    return CompletionLogprobs(texts, wire)


def _alternatives(tokenizer: Tokenizer, sampled: Sampled) -> dict[str, float | None]:
    """The likeliest tokens and, as in the API, the one that was chosen, which may not be among them."""
    likeliest: dict[str, float | None] = {_text(tokenizer, top.token): top.logprob for top in sampled.top}
    return likeliest | {_text(tokenizer, sampled.token): sampled.logprob}


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, object]:
    return {"token": _text(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.piece(token))}


def _text(tokenizer: Tokenizer, token: int) -> str:
    """The token's text; the name of a control token, which has none."""
    if token in tokenizer.control:
        return tokenizer.spelling(token)
    return tokenizer.piece(token).decode(errors="replace")
