"""Library: the `tokenizers` library as Puna calls it, without its threads, its panics and the interpreter's lock."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import tokenizers

from quant.errors import PunaError

# The library starts a thread for each core at its first batch, and then writes warnings when a process is spawned.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


class UntokenisableText(PunaError):
    """The library gave up: a pattern of the model's tokenizer took too many steps on this text."""


@dataclass(frozen=True)
class Library:
    """Two tokenizers over one model, so that no call has to switch the other's setting."""

    parsing: tokenizers.Tokenizer  # control tokens that are written out in a text become their ids
    plain: tokenizers.Tokenizer  # they are text like any other

    @classmethod
    def of(cls, parsing: tokenizers.Tokenizer, plain: tokenizers.Tokenizer) -> "Library":
        plain.model = parsing.model  # the vocabulary lies in memory once
        plain.encode_special_tokens = True
        for library in (parsing, plain):
            library.no_truncation()  # a tokenizer.json may ask for it, and a prompt would lose its end in silence
            library.no_padding()
        return cls(parsing, plain)

    def encode(self, text: str, special: bool) -> list[int]:
        library = self.parsing if special else self.plain
        try:
            # Of the library's calls only those for batches release the interpreter's lock.
            (encoding,) = library.encode_batch_fast([text], add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # a panic of the library is not an Exception
            raise UntokenisableText(f"the model's tokenizer gives up on a text of {len(text)} characters") from fault
        ids: list[int] = encoding.ids
        return ids


def added(contents: Iterable[str], *, special: bool) -> list[tokenizers.AddedToken]:
    """Tokens that are looked for in the text as it is, before anything else happens to it."""
    return [tokenizers.AddedToken(content, special=special, normalized=False) for content in contents]
