"""Guard: words of a conversation never become control tokens, however they are spelled.

A template writes the conversation and its own control tokens into one text, which is then read as a whole. So what a
user spells like a control token is marked before, and the text is cut at the mark after: no half is that token.
"""

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from models.tokenizer import Tokenizer
from server.errors import InvalidRequest

# Signs of the Phaistos disc: printable, so that no template writes them as an escape, and nobody can read them.
_MARKS = [chr(code) for code in range(0x101D0, 0x101FD)]


T = TypeVar("T")


class Guard:
    def __init__(self, tokenizer: Tokenizer) -> None:
        spellings = sorted({tokenizer.spelling(token) for token in tokenizer.control}, key=len, reverse=True)
        alternatives = "|".join(re.escape(spelling) for spelling in spellings if len(spelling) > 1)
        # A pattern that matches nothing, where there is nothing to guard.
        self._spelled = re.compile(alternatives or r"(?!)")
        self._tokenizer = tokenizer

    def mark(self, words: T) -> tuple[T, str]:
        """The same words with marks in them, and the mark; it is in none of the words."""
        texts = list(_texts(words))
        if not any(self._spelled.search(text) for text in texts):
            return words, ""
        mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
        if mark is None:
            raise InvalidRequest("messages: has every sign of the Phaistos disc; one must be free", "messages")
        return self._marked(words, mark), mark

    def encode(self, text: str, mark: str) -> list[int]:
        parts = text.split(mark) if mark else [text]
        return [token for part in parts for token in self._tokenizer.encode(part, special=True)]

    def _marked(self, words: Any, mark: str) -> Any:
        match words:
            case str():
                return self._spelled.sub(lambda found: found[0][0] + mark + found[0][1:], words)
            case list() | tuple():
                return [self._marked(item, mark) for item in words]
            case dict():
                return {self._marked(key, mark): self._marked(value, mark) for key, value in words.items()}
            case _:
                return words


def _texts(words: object) -> Iterator[str]:
    match words:
        case str():
            yield words
        case list() | tuple():
            for item in words:
                yield from _texts(item)
        case dict():
            for key, value in words.items():
                yield key
                yield from _texts(value)
