"""Vocabularies for the tests of tokenizers: the real ones from outside, and small ones written by the gguf package."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gguf
import tokenizers

from models.tokenizer import Tokenizer
from models.tokenizer_gguf import gguf_tokenizer
from quant.gguf_file import GGUFFile
from tests.quant.outside import outside

REAL = ["gpt-2", "llama-bpe", "qwen2", "llama-spm"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def real_file(name: str) -> Path:
    return outside("vocab") / f"ggml-vocab-{name}.gguf"


@cache
def real(name: str) -> Tokenizer:
    return tokenizer_at(real_file(name))


def expected(name: str) -> list[tuple[str, list[int]]]:
    """Texts and the ids that llama.cpp expects of them."""
    path = real_file(name)
    with open(f"{path}.inp", newline="") as texts, open(f"{path}.out") as ids:
        inputs = texts.read().split("\n__ggml_vocab_test__\n")
        lines = ids.read().split("\n")
    return [(text, [int(number) for number in line.split()]) for text, line in zip(inputs, lines, strict=True)]


def tokenizer_at(path: Path) -> Tokenizer:
    with GGUFFile(path) as file:
        return gguf_tokenizer(file)


class Vocabulary:
    """A GGUF of a vocabulary alone; what is set here is what the file says."""

    def __init__(self, model: str, tokens: Sequence[str], kinds: Sequence[int]) -> None:
        self.model, self.tokens, self.kinds = model, list(tokens), list(kinds)
        self.pre: str | None = None
        self.merges: list[str] | None = None
        self.scores: list[float] | None = None
        self.ids: dict[str, int] = {}
        self.flags: dict[str, bool] = {}

    def write(self, folder: Path) -> Path:
        path = folder / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        for name, token in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        for name, flag in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", flag)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path


def byte_level(*more: str, kinds: Sequence[int] = (), merges: Sequence[str] = ("Ġ Ġ",)) -> Vocabulary:
    """GPT-2's 256 bytes, then the tokens that the merges make, then more of the kinds given."""
    made = [merge.replace(" ", "") for merge in merges]
    vocabulary = Vocabulary("gpt2", [*ALPHABET, *made, *more], [*[NORMAL] * (256 + len(made)), *kinds])
    vocabulary.pre = "gpt-2"
    vocabulary.merges = list(merges)
    return vocabulary


def sentencepiece(pieces: Sequence[str], scores: Sequence[float]) -> Vocabulary:
    """<unk>, <s>, </s>, the 256 bytes, and the pieces with their scores."""
    control = ["<unk>", "<s>", "</s>"]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    vocabulary = Vocabulary("llama", [*control, *data, *pieces], kinds)
    vocabulary.scores = [0.0] * 259 + list(scores)
    return vocabulary
