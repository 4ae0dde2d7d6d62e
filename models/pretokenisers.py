"""Pre-tokenisers: how text is cut into words before byte-level BPE, by the name in `tokenizer.ggml.pre`.

Each row repeats, as data, what the tokenizer.json of the models that use it says. Several patterns apply one after the
other: each cuts the pieces that the ones before it left, and what it matches and what lies between both stay pieces.
A prompt of one character repeated takes every row time in proportion to its length; `tiny_aya`, whose digits would take
the square of it, is not here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokeniser:
    """`whole_words`: a word that is a token is taken as it is, unmerged. `bos`: a prompt begins with the BOS token."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False


_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_LINES}"
_QWEN2 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|{_LINES}"
_QWEN35 = rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
_MINICPM5 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}+|{_SIGNS}[\r\n]*|{_LINES}"
_TEKKEN = rf"{_CASED_WORDS[0]}|{_CASED_WORDS[1]}|\p{{N}}|{_SIGNS}[\r\n/]*|{_LINES}"
_GPT4O = rf"{_CASED_WORDS[0]}{_SUFFIXES}?|{_CASED_WORDS[1]}{_SUFFIXES}?|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_LINES}"
_SEED_CODER = rf"{_SUFFIXES}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HAN = "[一-龥\u0800-一가-\ud7ff]+"
_HAN_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
# The file lists the cased letters of Unicode 11 without a few blocks; here the same set as a difference.
_CASED = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\u2d00-\u2d2d\ua790-\ua7fa\uab30-\uab68"
    r"\x{10570}-\x{105bc}\x{16e40}-\x{16e7f}\x{1d400}-\x{1d7cb}\x{1df00}-\x{1df1e}]]"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_CASED}+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"(?<!\s)\s+$",  # the file has no lookbehind: without it a long run of spaces takes quadratic time
    _HAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _HAN_KANA,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _LINES,
)


def _rows() -> dict[str, PreTokeniser]:
    table: dict[str, PreTokeniser] = {}

    def row(names: str, *patterns: str, whole_words: bool = False, bos: bool = False) -> None:
        for name in names.split():
            assert name not in table, name
            table[name] = PreTokeniser(patterns, whole_words, bos)

    row("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    row("gpt-2 phi-2 mpt olmo jais exaone4 gigachat a.x-4.0 mellum trillion granite-docling", _GPT2)
    row("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", r"\p{N}", _GPT2)
    row("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
    row("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", _LLAMA3, whole_words=True, bos=True)
    row("dbrx smaug-bpe glm4 chatglm-bpe", _LLAMA3)
    row("minicpm5", r"\p{N}{1,3}", _MINICPM5, whole_words=True)
    row("qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan kormo f2llmv2 grok-2 solar-open", _QWEN2)
    row("qwen35", _QWEN35)
    row("tekken mistral-nemo", _TEKKEN, whole_words=True, bos=True)
    row("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O)
    row("deepseek-llm", *_DEEPSEEK_LLM)
    row("deepseek-coder", *_DEEPSEEK_CODER)
    row("deepseek-v3 hunyuan-dense joyai-llm hy_v4", *_DEEPSEEK_V3)
    row("seed-coder", _SEED_CODER)
    row("bailingmoe bailingmoe2 llada-moe", _BAILING)
    row("bloom poro-chat gpt3-finnish", _BLOOM)
    row("viking", _BLOOM, r"\p{N}")
    return table


PRE_TOKENISERS = _rows()
