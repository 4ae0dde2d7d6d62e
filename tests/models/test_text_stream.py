"""The stream of an answer: whole characters as soon as they are whole, and nothing lost or doubled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text_stream import TextStream
from tests.models.vocabularies import real

_BYTES = "gpt-2"  # its first 256 tokens are the bytes


def streamed(name: str, ids: list[int]) -> list[str]:
    stream = TextStream(real(name))
    return [*map(stream.push, ids), stream.finish()]


def bytes_of(text: str) -> list[int]:
    """A token for each byte of the text."""
    tokenizer = real(_BYTES)
    token = {tokenizer.piece(i): i for i in range(256)}
    return [token[bytes([byte])] for byte in text.encode()]


@settings(deadline=None)  # the first call builds the tokenizer
@given(ids=st.lists(st.integers(0, 255) | st.integers(0, 50256)))
def test_the_stream_joined_is_decode_of_the_whole(ids: list[int]) -> None:
    assert "".join(streamed(_BYTES, ids)) == real(_BYTES).decode(ids)


@settings(deadline=None)  # the first call builds the tokenizer
@given(ids=st.lists(st.integers(0, 31999)))
def test_so_it_is_with_sentencepiece(ids: list[int]) -> None:
    assert "".join(streamed("llama-spm", ids)) == real("llama-spm").decode(ids)


@settings(deadline=None)  # the first call builds the tokenizer
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    pushed = iter(streamed(_BYTES, bytes_of(text)))
    for character in text:
        *before, last = [next(pushed) for _ in character.encode()]
        assert before == [""] * len(before)
        assert last == character
    assert list(pushed) == [""]


@settings(deadline=None)  # the first call builds the tokenizer
@given(ids=st.lists(st.integers(0, 255)))
def test_what_was_said_is_never_taken_back(ids: list[int]) -> None:
    whole = real(_BYTES).decode(ids)
    said = ""
    for piece in streamed(_BYTES, ids):
        said += piece
        assert whole.startswith(said)


@pytest.mark.parametrize("text", ["🦙", "é", "想", "\U0001f636\u200d\U0001f32b\ufe0f"])
def test_a_character_cut_off_at_the_end_is_the_replacement_character(text: str) -> None:
    *complete, last = streamed(_BYTES, bytes_of(text)[:-1])
    assert "".join(complete) == text[:-1]
    assert last == "\ufffd"


def test_control_tokens_say_nothing() -> None:
    assert streamed("qwen2", [151644, 872, 151645]) == ["", "user", "", ""]
