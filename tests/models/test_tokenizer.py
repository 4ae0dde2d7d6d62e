"""Tokenizers: real vocabularies give the ids that llama.cpp gives, and no text is lost on the way there and back."""

import heapq
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pieces import BYTE_OF_CHARACTER, SPACE_MARK
from models.pretokenisers import PRE_TOKENISERS
from quant.gguf_file import GGUFFile
from tests.models.vocabularies import (
    CONTROL,
    NORMAL,
    REAL,
    USER_DEFINED,
    byte_level,
    expected,
    real,
    real_file,
    sentencepiece,
    tokenizer_at,
)

every_real = pytest.mark.parametrize("name", REAL)
# A lone surrogate has no UTF-8, and SentencePiece's mark for a space is read as one.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE_MARK), max_size=80)
awkward = st.text(st.sampled_from(" \n\t'sSaAé1.-🦙想\u0301\u00a0\u200d"), max_size=80)


@every_real
def test_a_real_vocabulary_gives_exactly_the_expected_ids(name: str) -> None:
    for text, ids in expected(name):
        assert real(name).encode(text, special=False) == ids, text


@every_real
def test_decode_gives_the_text_back(name: str) -> None:
    for text, ids in expected(name):
        assert real(name).decode(ids) == (real(name).prefix + text if text else "")


@every_real
@settings(deadline=None)  # the first call builds the tokenizer
@given(text=texts | awkward)
def test_any_text_survives_encode_and_decode(name: str, text: str) -> None:
    tokenizer = real(name)
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == (tokenizer.prefix + text if text else "")


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("gpt-2", "a<|endoftext|>", [64, 50256]),
        ("llama-bpe", "<|begin_of_text|>hi<|eot_id|>", [128000, 6151, 128009]),
        ("qwen2", "<|im_start|>user\n", [151644, 872, 198]),
        ("llama-spm", "<s>[INST] hi</s>", [1, 518, 25580, 29962, 7251, 2]),
    ],
)
def test_control_tokens_are_read_where_that_is_asked_for(name: str, text: str, ids: list[int]) -> None:
    assert real(name).encode(text, special=True) == ids


@every_real
def test_control_tokens_in_plain_text_stay_text(name: str) -> None:
    tokenizer = real(name)
    text = "".join(tokenizer.spelling(token) for token in sorted(tokenizer.control)[:20])
    ids = tokenizer.encode(text, special=False)
    assert not tokenizer.control & set(ids)
    assert tokenizer.decode(ids) == tokenizer.prefix + text


@every_real
def test_control_tokens_have_no_text(name: str) -> None:
    assert real(name).decode(sorted(real(name).control)) == ""


@pytest.mark.parametrize(
    ("name", "bos", "eos", "add_bos", "ends"),
    [
        ("gpt-2", 50256, 50256, False, {50256}),
        ("llama-bpe", 128000, 128001, True, {128001, 128009}),
        ("qwen2", 151643, 151643, False, {151643, 151645}),
        ("llama-spm", 1, 2, True, {2}),
    ],
)
def test_where_texts_begin_and_end(name: str, bos: int, eos: int, add_bos: bool, ends: set[int]) -> None:
    tokenizer = real(name)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (bos, eos, add_bos)
    assert tokenizer.ends == ends


def test_a_token_outside_the_vocabulary_has_no_text() -> None:
    assert real("gpt-2").piece(50257) == b""
    assert real("gpt-2").piece(-1) == b""


def test_a_lone_surrogate_is_read_as_the_replacement_character() -> None:
    tokenizer = real("qwen2")
    assert tokenizer.encode("a\ud83eb", special=False) == tokenizer.encode("a\ufffdb", special=False)
    assert tokenizer.encode("\ud83e\udd99", special=False) == tokenizer.encode("🦙", special=False)


def test_user_defined_tokens_are_cut_out_even_of_plain_text(tmp_path: Path) -> None:
    path = byte_level("<tool>", "<|x|>", "<|x|>y", kinds=[USER_DEFINED, CONTROL, CONTROL]).write(tmp_path)
    tokenizer = tokenizer_at(path)
    assert tokenizer.encode("<tool>", special=False) == [257]
    assert tokenizer.decode([257]) == "<tool>"
    assert tokenizer.encode("<|x|>", special=True) == [258]
    assert tokenizer.encode("<|x|>y", special=True) == [259], "the longest"
    assert len(tokenizer.encode("<|x|>", special=False)) == 5


def test_a_token_with_characters_outside_the_byte_alphabet_is_itself(tmp_path: Path) -> None:
    tokenizer = tokenizer_at(byte_level("想 在", kinds=[NORMAL]).write(tmp_path))
    assert tokenizer.piece(257) == "想 在".encode()


def test_byte_level_bpe_agrees_with_the_librarys_own_gpt2(tmp_path: Path) -> None:
    merges = ["Ġ t", "h e", "Ġt he", "a a", "aa aa", "Ċ Ċ"]
    tokenizer = tokenizer_at(byte_level(merges=merges).write(tmp_path))
    with GGUFFile(tmp_path / "vocabulary.gguf") as file:
        ids = {token: i for i, token in enumerate(file.metadata.strings("tokenizer.ggml.tokens"))}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ["the  the", "aaaaaaa aa\n\n\nthe's 12 é", " t  the"]:
        assert tokenizer.encode(text, special=False) == theirs.encode(text).ids


# SentencePiece


def greedy(tokens: list[str], scores: list[float], text: str) -> list[str]:
    """The slow twin of our ranks: of all neighbours that make a token, join those of the best score, leftmost first."""
    score = dict(zip(tokens, scores, strict=True))
    parts = list(text)
    while True:
        joins = [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in score]
        if not joins:
            return parts
        _, at = heapq.nsmallest(1, joins)[0]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


# Score of a word of the letters a and b: any order, no two alike, as trainers write them.
@st.composite
def word_scores(draw: st.DrawFn) -> dict[str, float]:
    words = draw(st.lists(st.text("ab", min_size=2, max_size=5), unique=True, max_size=12))
    order = draw(st.permutations(range(len(words))))
    return dict(zip(words, (-1.0 - place for place in order), strict=True))


@settings(deadline=None)  # the first call builds the tokenizer
@given(words=word_scores(), text=st.text("abc", max_size=24))
def test_sentencepiece_joins_as_its_greedy_twin_does(
    tmp_path_factory: pytest.TempPathFactory, words: dict[str, float], text: str
) -> None:
    tokens, scores = ["a", "b", *words], [-100.0, -101.0, *words.values()]
    vocabulary = sentencepiece(tokens, scores)
    vocabulary.flags["add_space_prefix"] = False
    tokenizer = tokenizer_at(vocabulary.write(tmp_path_factory.mktemp("spm")))
    ids = tokenizer.encode(text, special=False)
    parts = [part if part != "c" else "<0x63>" for part in greedy(tokens, scores, text)]
    assert [vocabulary.tokens[i] for i in ids] == parts


@settings(deadline=None)  # the first call builds the tokenizer
@given(text=awkward)
def test_the_real_sentencepiece_vocabulary_joins_as_its_greedy_twin_does(text: str) -> None:
    tokens, scores, bytes_first = _real_pieces()
    parts = greedy(tokens, scores, (" " + text).replace(" ", SPACE_MARK)) if text else []
    ids = real("llama-spm").encode(text, special=False)
    place = {token: bytes_first + 256 + i for i, token in enumerate(tokens)}
    spelled = [[place[part]] if part in place else [bytes_first + byte for byte in part.encode()] for part in parts]
    assert ids == [token for tokens in spelled for token in tokens]


def _real_pieces() -> tuple[list[str], list[float], int]:
    """The normal tokens of the real vocabulary, which follow three control tokens and the bytes."""
    if not _PIECES:
        with GGUFFile(real_file("llama-spm")) as file:
            tokens = file.metadata.strings("tokenizer.ggml.tokens")
            scores = file.metadata.numbers("tokenizer.ggml.scores").tolist()
        _PIECES.append((tokens[259:], scores[259:], 3))
    return _PIECES[0]


_PIECES: list[tuple[list[str], list[float], int]] = []


def test_each_stretch_after_a_control_token_begins_with_a_space(tmp_path: Path) -> None:
    tokenizer = tokenizer_at(sentencepiece(["a", SPACE_MARK], [-1.0, -2.0]).write(tmp_path))
    space, a = 260, 259
    assert tokenizer.encode("a<s>a a", special=True) == [space, a, 1, space, a, space, a]
    assert tokenizer.encode("", special=True) == []


def test_extra_spaces_go_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    vocabulary = sentencepiece(["a", SPACE_MARK], [-1.0, -2.0])
    vocabulary.flags |= {"remove_extra_whitespaces": True, "add_space_prefix": False}
    tokenizer = tokenizer_at(vocabulary.write(tmp_path))
    assert tokenizer.decode(tokenizer.encode("  a   a ", special=False)) == "a a"


# Pre-tokenisers

distinct = {pre.patterns: name for name, pre in PRE_TOKENISERS.items()}


def words(name: str, text: str) -> list[str]:
    pieces = [text]
    for pattern in PRE_TOKENISERS[name].patterns:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        pieces = [word for piece in pieces for word, _ in split.pre_tokenize_str(piece)]
    return pieces


every_pre_tokeniser = pytest.mark.parametrize("name", sorted(distinct.values()))


@every_pre_tokeniser
@settings(deadline=None)  # the first call builds the tokenizer
@given(text=texts | awkward)
def test_a_pre_tokeniser_loses_nothing(name: str, text: str) -> None:
    assert "".join(words(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "cut"),
    [
        ("gpt-2", "It's 12345  ok", ["It", "'s", " 12345", " ", " ok"]),
        ("llama-bpe", "IT'S 12345\n\n ok", ["IT", "'S", " ", "123", "45", "\n\n", " ok"]),
        ("qwen2", "x=123;\n", ["x", "=", "1", "2", "3", ";\n"]),
        ("qwen35", "नमस्ते दुनिया", ["नमस्ते", " दुनिया"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("default", "a 1234!", ["a", " ", "123", "4", "!"]),
        ("tekken", "camelCaseWORD/n 12", ["camel", "Case", "WORD", "/n", " ", "1", "2"]),
        ("gpt-4o", "camelCase's 1234", ["camel", "Case's", " ", "123", "4"]),
        ("deepseek-v3", "x=1234 漢字かな ok", ["x", "=", "123", "4", " ", "漢字かな", " ok"]),
        ("deepseek-coder", "if x12:\n", ["if", " x", "1", "2", ":", "\n"]),
        ("deepseek-llm", "Ünd 123  ", ["Ü", "nd", " ", "123", "  "]),
        ("bloom", "a, b", ["a", ",", " b"]),
        ("falcon", "a==1234", ["a", "==", "123", "4"]),
    ],
)
def test_where_a_pre_tokeniser_cuts(name: str, text: str, cut: list[str]) -> None:
    assert words(name, text) == cut


@every_pre_tokeniser
def test_a_long_run_of_one_character_takes_no_quadratic_time(name: str) -> None:
    """About 0.02 s where the time is linear, and more than 30 s where it is quadratic."""
    for character in " aA1!\n想":
        began = time.monotonic()
        assert "".join(words(name, character * 50_000 + "x")) == character * 50_000 + "x"
        assert time.monotonic() - began < 5


def test_the_byte_alphabet_is_gpt2s() -> None:
    assert {chr(character) for character in BYTE_OF_CHARACTER} == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    assert all(unicodedata.category(chr(character)) not in {"Cc", "Zs"} for character in BYTE_OF_CHARACTER)
