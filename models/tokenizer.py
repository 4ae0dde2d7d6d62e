"""Tokenizer: text to token ids and back, the same for every kind of model file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.library import Library
from models.pieces import Pieces


@dataclass(frozen=True)
class Tokenizer:
    """decode(encode(text)) == prefix + text, unless the model's own normalisation or unknown token forbids it."""

    library: Library
    pieces: Pieces
    bos: int | None
    eos: int | None
    add_bos: bool  # a prompt begins with bos; encode leaves that to its caller
    ends: frozenset[int]  # the model has finished when it says one of these
    control: frozenset[int]  # tokens that stand for no text
    prefix: str = ""  # SentencePiece puts a space in front of a text

    @property
    def size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids without BOS; with `special`, control tokens that the text spells out become their ids.

        A surrogate that lacks its other half has no UTF-8 and is read as U+FFFD.
        """
        return self.library.encode(_scalars(text), special)

    def piece(self, token: int) -> bytes:
        """The bytes that the token adds to a text; none for control tokens and for the padding after the vocabulary."""
        if token in self.control or not 0 <= token < len(self.pieces):
            return b""
        return self.pieces[token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as the continuation of another; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def spelling(self, token: int | None) -> str:
        """How the token is written in a template: a control token by its name, one that is not there as nothing.

        An end may lie in the padding after the vocabulary: some files state ids that no text spells.
        """
        return "" if token is None or token >= self.size else self.pieces[token].decode("utf-8", "replace")


def _scalars(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# End of a turn or of a text, as published models write it. Those in angle bars are never anything else; the others
# are also words of the web, so they count only as control tokens.
_ALWAYS_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)
_CONTROL_ENDS = ("</s>", "<eos>", "<end_of_turn>", "<EOT>", "[EOS]", "[EOT]", "<end_of_utterance>")


def ends_by_name(ids: Mapping[str, int], control: frozenset[int]) -> frozenset[int]:
    """Tokens of a vocabulary whose name says that the model has finished."""
    always = {ids[name] for name in _ALWAYS_ENDS if name in ids}
    return frozenset(always | {ids[name] for name in _CONTROL_ENDS if ids.get(name) in control})
