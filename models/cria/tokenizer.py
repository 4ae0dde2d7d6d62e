"""The tokenizer: a byte-level BPE of the corpus, with the Qwen2 pre-tokeniser, so that every digit is a token."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.cria.corpus import documents
from models.cria.render import END, text

SIZE = 3072
CONTROL = ["<|pad|>", END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
VISIBLE = ["<tool_call>", "</tool_call>"]
PAD_ID, END_ID, ASSISTANT_ID = 0, 1, 4
QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The merges are learnt on a finer split, where a name never joins the blank or the quote before it: then a name is the
# same tokens in a sentence and in JSON, and to copy it is to repeat them.
LEARNT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])| I(?!\p{L})|\p{Lu}+\p{Ll}*| ?\p{Ll}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE = 25_000  # documents; more of them do not change the merges much
RARE = 8  # words seen less often are inventions, and get no merges of their own


def _splitting(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def untrained() -> Tokenizer:
    """The tokenizer before it has seen a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitting(QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of these texts: specials first, then the 256 bytes, then the merges."""
    tokenizer = untrained()
    tokenizer.pre_tokenizer = _splitting(LEARNT)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL]
        + [AddedToken(token, special=False, normalized=False) for token in VISIBLE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _splitting(QWEN2)
    assert tokenizer.get_vocab_size() == SIZE
    assert [tokenizer.id_to_token(at) for at in range(len(CONTROL))] == CONTROL
    return tokenizer


def of_corpus(seed: int) -> Tokenizer:
    """The tokenizer of the corpus of a seed, of its words that come again and again."""
    texts = [text(document) for document in islice(documents(seed), SAMPLE)]
    seen = Counter(word for one in texts for word in re.findall("[A-Za-z]+", one))
    return trained(re.sub("[A-Za-z]+", lambda word: word[0] if seen[word[0]] >= RARE else "", one) for one in texts)
