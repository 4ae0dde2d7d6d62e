"""Pieces: the bytes that each token id stands for."""

from array import array
from collections.abc import Iterable


class Pieces:
    """One block of bytes and where each token ends in it: an id costs its bytes and four more."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        joined = bytearray()
        ends = array("I")
        for piece in pieces:
            joined += piece
            ends.append(len(joined))
        self._joined = bytes(joined)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, token: int) -> bytes:
        assert 0 <= token < len(self._ends), token
        return self._joined[self._ends[token - 1] if token else 0 : self._ends[token]]


def _byte_characters() -> dict[int, int]:
    """GPT-2's alphabet, from character to byte: printing Latin-1 stands for itself, other bytes for U+0100 and up."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: byte for byte in printing} | {0x100 + i: byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()
CHARACTER_OF_BYTE = {byte: chr(character) for character, byte in BYTE_OF_CHARACTER.items()}
BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes it for a space


def byte_level_piece(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet; a token with other characters in it is taken as it is written."""
    try:
        return token.translate(BYTE_OF_CHARACTER).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def sentencepiece_piece(token: str) -> bytes:
    """The bytes of a SentencePiece token; <0xNN> is one byte."""
    return BYTE_TOKENS.get(token) or token.replace(SPACE_MARK, " ").encode()
