"""Prompts of random words, and answers that are known before they are asked for.

Models with random weights answer with noise. A logit bias of 100 on one word makes them repeat it, through the API and
on every server alike: so each token of an answer has text, and shows at the client when it comes, and a conversation
goes on with exactly the tokens that the server made. The arithmetic is the same as without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.card import tokenizer_of
from quant.open import open_checkpoint

BIAS = 100  # the most that the API allows


@dataclass(frozen=True)
class Word:
    token: int
    text: str


class Words:
    """Those tokens of a model that are words of letters, in an order that is the same each time."""

    def __init__(self, file: Path) -> None:
        with open_checkpoint(file) as checkpoint:
            tokenizer = tokenizer_of(checkpoint)
        texts = ((token, tokenizer.decode([token])) for token in range(tokenizer.size))
        self._words = [Word(token, text) for token, text in texts if text.isascii() and text.strip(" ").isalpha()]
        self._random = np.random.default_rng(0)

    def draw(self, count: int) -> list[int]:
        """A text that nobody has seen."""
        return [self._words[place].token for place in self._random.integers(len(self._words), size=count)]

    def one(self) -> Word:
        return self._words[int(self._random.integers(len(self._words)))]

    def between(self, least: int, most: int) -> int:
        return int(self._random.integers(least, most + 1))


def completion(prompt: Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
    """A greedy streamed answer of so many tokens."""
    return {
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


def repeated(word: Word) -> dict[str, Any]:
    """The answer is this word, again and again."""
    return {"logit_bias": {str(word.token): BIAS}}
