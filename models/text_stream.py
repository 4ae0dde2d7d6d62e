"""TextStream: the tokens of an answer become text as they come, whole characters only."""

import codecs

from models.tokenizer import Tokenizer


class TextStream:
    """What push and finish give, joined, is decode of all the tokens, however they were split."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; the beginning of a character waits for its rest."""
        return self._decoder.decode(self._tokenizer.piece(token))

    def finish(self) -> str:
        """U+FFFD for a character that was begun and not completed."""
        return self._decoder.decode(b"", final=True)
