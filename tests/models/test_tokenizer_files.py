"""Tokenizers of broken files are refused by name; a folder's and a GGUF's tokenizer are the same one."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from models.library import UntokenisableText
from models.pieces import SPACE_MARK
from models.tokenizer import Tokenizer
from models.tokenizer_json import folder_tokenizer
from quant.errors import ModelFileError, ModelFormatError, UnsupportedModel
from quant.mlx_folder import MLXFolder
from tests import tiny_tokenizer
from tests.models.vocabularies import BYTE, CONTROL, NORMAL, byte_level, sentencepiece, tokenizer_at

# GGUF files


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        tokenizer_at(path)
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


def test_an_unknown_kind_of_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    vocabulary = byte_level()
    vocabulary.model = "rwkv"
    refused(vocabulary.write(tmp_path), "tokenizer.ggml.model", "rwkv", "gpt2")


def test_an_unknown_pre_tokeniser_is_refused_by_name(tmp_path: Path) -> None:
    vocabulary = byte_level()
    vocabulary.pre = "surprise"
    refused(vocabulary.write(tmp_path), "tokenizer.ggml.pre", "surprise")


def test_a_token_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    refused(byte_level("twin", "twin", kinds=[NORMAL, NORMAL]).write(tmp_path), "tokenizer.ggml.tokens", "'twin'")


def test_kinds_that_do_not_fit_the_tokens_are_refused(tmp_path: Path) -> None:
    refused(byte_level("more", kinds=[]).write(tmp_path), "258 tokens", "257", "token_type")


def test_scores_that_do_not_fit_the_tokens_are_refused(tmp_path: Path) -> None:
    refused(sentencepiece(["a", "b"], [-1.0]).write(tmp_path), "261 tokens", "260 scores")


def test_a_byte_that_no_token_spells_is_refused(tmp_path: Path) -> None:
    vocabulary = byte_level()
    vocabulary.tokens[vocabulary.tokens.index("z")] = "zz"
    refused(vocabulary.write(tmp_path), "0x7A")


def test_sentencepiece_without_bytes_or_unknown_token_is_refused(tmp_path: Path) -> None:
    vocabulary = sentencepiece(["a"], [-1.0])
    vocabulary.tokens[3] = "not a byte"
    refused(vocabulary.write(tmp_path), "byte tokens")


def test_a_token_that_would_take_minutes_to_cut_is_refused(tmp_path: Path) -> None:
    refused(sentencepiece(["a" * 20_000], [-1.0]).write(tmp_path), "longer than")


@pytest.mark.parametrize("merge", ["Ġ missing", "noend", ""])
def test_a_merge_of_no_token_is_refused(tmp_path: Path, merge: str) -> None:
    vocabulary = byte_level()
    vocabulary.merges = [merge]
    refused(vocabulary.write(tmp_path), "cannot be built")


@pytest.mark.parametrize("name", ["bos", "eos", "eot", "eom"])
def test_a_special_id_outside_the_vocabulary_is_refused(tmp_path: Path, name: str) -> None:
    vocabulary = byte_level()
    vocabulary.ids[name] = 257
    refused(vocabulary.write(tmp_path), f"tokenizer.ggml.{name}_token_id", "257")


def test_a_bos_that_is_asked_for_and_not_there_is_refused(tmp_path: Path) -> None:
    vocabulary = byte_level()
    vocabulary.flags["add_bos_token"] = True
    refused(vocabulary.write(tmp_path), "add_bos_token")


def test_an_end_by_name_counts_as_a_control_token(tmp_path: Path) -> None:
    path = byte_level("<|im_end|>", "</s>", "<eos>", kinds=[NORMAL, NORMAL, CONTROL]).write(tmp_path)
    tokenizer = tokenizer_at(path)
    assert tokenizer.ends == {257, 259}, "</s> is also a word of the web"
    assert tokenizer.decode([257, 258, 259]) == "</s>"


def test_a_byte_token_whose_name_is_no_byte_stands_for_nothing(tmp_path: Path) -> None:
    assert tokenizer_at(byte_level("<0xZZ>", kinds=[BYTE]).write(tmp_path)).piece(257) == b""


# Folders


def folder_at(path: Path, **changed: Any) -> Tokenizer:
    """The tokenizer of a folder of nothing else; keyword arguments are keys of config.json."""
    (path / "config.json").write_text(json.dumps(changed))
    (path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with MLXFolder(path) as folder:
        return folder_tokenizer(folder)


def change(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tiny_tokenizer.write_folder(tmp_path, tiny_tokenizer.SIZE)
    return tmp_path


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("the llama <|im_end|>")))
def test_a_folder_and_a_gguf_of_one_tokenizer_agree(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if not _BOTH:
        at = tmp_path_factory.mktemp("both")
        tiny_tokenizer.write_folder(at, tiny_tokenizer.SIZE)
        _BOTH.extend([folder_at(at), tokenizer_at(_tiny_gguf(at))])
    ours, theirs = _BOTH
    for special in (False, True):
        ids = ours.encode(text, special=special)
        assert ids == theirs.encode(text, special=special)
        assert ours.decode(ids) == theirs.decode(ids)
        assert special or ours.decode(ids) == text
    assert (ours.bos, ours.eos, ours.add_bos, ours.prefix) == (theirs.bos, theirs.eos, theirs.add_bos, theirs.prefix)
    assert (ours.ends, ours.control, ours.size) == (theirs.ends, theirs.control, theirs.size)


_BOTH: list[Tokenizer] = []


def _tiny_gguf(folder: Path) -> Path:
    """The same tokens and merges, cut as the folder's tokenizer.json cuts."""
    tokens = tiny_tokenizer.tokens()
    vocabulary = byte_level()
    vocabulary.tokens = tokens
    vocabulary.kinds = [CONTROL if i in tiny_tokenizer.CONTROL else NORMAL for i in range(len(tokens))]
    vocabulary.merges = [f"{left} {right}" for left, right in tiny_tokenizer.merges()]
    vocabulary.ids = {"bos": tiny_tokenizer.BEGIN, "eos": tiny_tokenizer.END}
    return vocabulary.write(folder)


def test_a_folder_of_sentencepiece_is_read_through_its_decoder(tmp_path: Path) -> None:
    ids = {token: i for i, token in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "a", SPACE_MARK])}
    library = tokenizers.Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    library.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = folder_at(tmp_path)
    assert tokenizer.prefix == " "
    assert tokenizer.decode(tokenizer.encode("a 🦙", special=False)) == " a 🦙"
    assert tokenizer.encode("<s>", special=True) == [259]
    assert 259 not in tokenizer.encode("<s>", special=False)


def test_a_tokenizer_that_truncates_or_pads_does_neither_here(tiny: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=64)
    library.save(str(tiny / "tokenizer.json"))
    tokenizer = folder_at(tiny)
    for special in (False, True):
        assert tokenizer.decode(tokenizer.encode("a llama on the puna", special=special)) == "a llama on the puna"


def test_every_stated_end_is_an_end(tiny: Path) -> None:
    change(tiny / "generation_config.json", eos_token_id=[5, 7])
    assert folder_at(tiny, eos_token_id=9).ends == {5, 7, 9, tiny_tokenizer.END}


def test_an_end_that_no_text_spells_is_an_end_all_the_same(tiny: Path) -> None:
    change(tiny / "generation_config.json", eos_token_id=100_000)
    tokenizer = folder_at(tiny)
    assert 100_000 in tokenizer.ends
    assert {tokenizer.spelling(token) for token in tokenizer.ends} == {"", tokenizer.spelling(tiny_tokenizer.END)}


def test_bos_is_added_where_the_tokenizer_itself_adds_it(tiny: Path) -> None:
    change(tiny / "tokenizer_config.json", add_bos_token=None)
    assert not folder_at(tiny).add_bos
    library = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tiny_tokenizer.BEGIN)]
    )
    library.save(str(tiny / "tokenizer.json"))
    assert folder_at(tiny).add_bos
    change(tiny / "tokenizer_config.json", add_bos_token=False)
    assert not folder_at(tiny).add_bos


def test_a_token_may_be_written_as_an_object(tiny: Path) -> None:
    change(tiny / "tokenizer_config.json", bos_token={"content": "<|begin|>", "lstrip": False})
    assert folder_at(tiny).bos == tiny_tokenizer.BEGIN


@pytest.mark.parametrize(
    ("file", "changed", "word"),
    [
        ("tokenizer_config.json", {"eos_token": "<absent>"}, "eos_token"),
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token"),
        ("tokenizer_config.json", {"bos_token": {"content": [1]}}, "bos_token"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token"),
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": None}, "add_bos_token"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id"),
        ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id"),
        ("generation_config.json", {"eos_token_id": 1 << 40}, "eos_token_id"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}, "4294967295"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "cannot be built"),
        ("tokenizer.json", {"model": {"type": "Surprise"}}, "cannot be built"),
        ("tokenizer.json", {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "WordPiece"),
        ("tokenizer.json", {"decoder": None}, "decoder"),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_key(tiny: Path, file: str, changed: dict[str, Any], word: str) -> None:
    change(tiny / file, **changed)
    with pytest.raises(ModelFileError) as caught:
        folder_at(tiny)
    assert str(tiny / file) in str(caught.value)
    assert word in str(caught.value)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        folder_at(tmp_path)


def test_broken_json_is_refused(tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ModelFormatError, match="cannot be built"):
        folder_at(tiny)


def test_a_pattern_that_explodes_is_an_error_of_the_text(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change(tiny / "tokenizer.json", pre_tokenizer=pattern)
    with pytest.raises(UntokenisableText, match="gives up"):
        folder_at(tiny).encode("a" * 40 + "b", special=False)
    capfd.readouterr()  # the library reports its panic on stderr
