"""A Tokenizer from the metadata of a GGUF file: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from models.library import Library, added
from models.pieces import BYTE_TOKENS, CHARACTER_OF_BYTE, SPACE_MARK, Pieces, byte_level_piece, sentencepiece_piece
from models.pretokenisers import PRE_TOKENISERS
from models.tokenizer import Tokenizer, ends_by_name
from quant.errors import ModelFormatError, UnsupportedModel
from quant.gguf_file import GGUFFile

_KEY = "tokenizer.ggml."
# Cutting a token into halves takes the square of its length; a vocabulary of 256k tokens needs about a fifth of this.
_MAX_HALVES = 1 << 26
_IN_UTF8 = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]


class Kind(IntEnum):
    """What `tokenizer.ggml.token_type` says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The token list of a file, checked: no token twice, one kind for each."""

    file: GGUFFile
    tokens: Sequence[str]
    kinds: Sequence[int]
    ids: Mapping[str, int]

    @classmethod
    def of(cls, file: GGUFFile) -> "Vocabulary":
        tokens = list(file.metadata.strings(_KEY + "tokens"))
        ids = {token: i for i, token in enumerate(tokens) if token}
        if len(ids) < len(tokens) - tokens.count(""):
            twice = next(token for i, token in enumerate(tokens) if token and ids[token] != i)
            raise ModelFormatError(file.path, f"{_KEY}tokens holds {twice!r} twice")
        kinds = [Kind.NORMAL] * len(tokens)
        if _KEY + "token_type" in file.metadata:
            kinds = file.metadata.numbers(_KEY + "token_type").tolist()
        if len(kinds) != len(tokens):
            raise ModelFormatError(file.path, f"{len(tokens)} tokens with {len(kinds)} values in {_KEY}token_type")
        return cls(file, tokens, kinds, ids)

    def of_kind(self, *wanted: Kind) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if kind in wanted and self.tokens[i]]

    def spelled(self, *wanted: Kind) -> list[str]:
        return [self.tokens[i] for i in self.of_kind(*wanted)]

    @property
    def unknown(self) -> int | None:
        """What stands for text that no token spells; only SentencePiece has it."""
        return self.token("unknown")

    def token(self, name: str, default: int | None = None) -> int | None:
        """The id under a key such as `eos`, or the default where that is in the vocabulary."""
        key = f"{_KEY}{name}_token_id"
        if key not in self.file.metadata:
            return default if default is not None and default < len(self.tokens) else None
        token = self.file.metadata.integer(key)
        if not 0 <= token < len(self.tokens):
            raise ModelFormatError(self.file.path, f"{key} is {token}, and there are {len(self.tokens)} tokens")
        return token


def gguf_tokenizer(file: GGUFFile) -> Tokenizer:
    """The Tokenizer that the file describes; an UnsupportedModel names a kind that we do not build."""
    kind = file.metadata.text(_KEY + "model")
    if kind not in _BUILDERS:
        raise UnsupportedModel(file.path, f"{_KEY}model {kind!r} is not one of {', '.join(_BUILDERS)}")
    return _BUILDERS[kind](Vocabulary.of(file))


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    file = vocabulary.file
    name = file.metadata.text(_KEY + "pre", default="default")
    if name not in PRE_TOKENISERS:
        raise UnsupportedModel(file.path, f"{_KEY}pre {name!r} is not a pre-tokeniser that Puna knows")
    missing = [byte for byte in _IN_UTF8 if CHARACTER_OF_BYTE[byte] not in vocabulary.ids]
    if missing:
        raise ModelFormatError(file.path, f"the vocabulary has no token for the byte 0x{missing[0]:02X}")
    pre = PRE_TOKENISERS[name]
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
    splits = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    library = _library(vocabulary, _written_merges(vocabulary), None, splits, whole_words=pre.whole_words)
    bos, eos = vocabulary.token("bos"), vocabulary.token("eos")
    return _tokenizer(vocabulary, library, byte_level_piece, bos, eos, add_bos=pre.bos and bos is not None)


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    metadata = vocabulary.file.metadata
    if vocabulary.unknown is None and not BYTE_TOKENS.keys() <= vocabulary.ids.keys():
        raise ModelFormatError(vocabulary.file.path, "the vocabulary has neither byte tokens nor an unknown token")
    prefix = " " if metadata.flag(_KEY + "add_space_prefix", default=True) else ""
    squeeze = metadata.flag(_KEY + "remove_extra_whitespaces", default=False)
    library = _library(vocabulary, _scored_merges(vocabulary), _spaces(prefix, squeeze), None)
    bos, eos = vocabulary.token("bos", default=1), vocabulary.token("eos", default=2)
    return _tokenizer(vocabulary, library, sentencepiece_piece, bos, eos, add_bos=bos is not None, prefix=prefix)


_BUILDERS: dict[str, Callable[[Vocabulary], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}


def _spaces(prefix: str, squeeze: bool) -> normalizers.Normalizer:
    """What SentencePiece does to the spaces of a text, and of each stretch between two control tokens."""
    steps: list[normalizers.Normalizer] = []
    if squeeze:
        steps.append(normalizers.Replace(tokenizers.Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" +"), " "))
    if prefix:
        steps.append(normalizers.Prepend(prefix))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE_MARK)])


def _library(
    vocabulary: Vocabulary,
    merges: list[tuple[str, str]],
    normalizer: normalizers.Normalizer | None,
    splits: pre_tokenizers.PreTokenizer | None,
    *,
    whole_words: bool = False,
) -> Library:
    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    try:
        bpe = models.BPE(dict(vocabulary.ids), merges, byte_fallback=True, unk_token=unknown, ignore_merges=whole_words)
    except Exception as fault:  # the library raises plain Exception, for instance for a merge of no token
        raise ModelFormatError(vocabulary.file.path, f"the tokenizer cannot be built: {fault}") from fault
    both = tokenizers.Tokenizer(bpe), tokenizers.Tokenizer(bpe)
    for library in both:
        library.normalizer = normalizer
        library.pre_tokenizer = splits
        library.add_tokens(added(vocabulary.spelled(Kind.USER_DEFINED), special=False))
        library.add_special_tokens(added(vocabulary.spelled(Kind.CONTROL, Kind.UNKNOWN), special=True))
    return Library.of(*both)


def _written_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs in order of their rank, as the file lists them: two tokens and a space between."""
    merges: list[tuple[str, str]] = []
    for merge in vocabulary.file.metadata.strings(_KEY + "merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    return merges


def _scored_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs in order of the score of what they make: SentencePiece always makes the best token that two neighbours can.

    Between equal tokens it takes the leftmost, which ranks cannot say; a shorter left half first says it nearly always.
    """
    scores = vocabulary.file.metadata.numbers(_KEY + "scores")
    if len(scores) != len(vocabulary.tokens):
        raise ModelFormatError(vocabulary.file.path, f"{len(vocabulary.tokens)} tokens with {len(scores)} scores")
    made = vocabulary.of_kind(Kind.NORMAL, Kind.UNUSED)
    if sum(len(vocabulary.tokens[i]) ** 2 for i in made) > _MAX_HALVES:
        raise ModelFormatError(vocabulary.file.path, f"{_KEY}tokens are longer than those of any model")
    made.sort(key=lambda i: -scores[i])
    return [pair for i in made for pair in _halves(vocabulary.tokens[i], vocabulary.ids)]


def _halves(token: str, ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        if left in ids and right in ids:
            yield left, right


def _tokenizer(
    vocabulary: Vocabulary,
    library: Library,
    spelled: Callable[[str], bytes],
    bos: int | None,
    eos: int | None,
    *,
    add_bos: bool,
    prefix: str = "",
) -> Tokenizer:
    path, metadata = vocabulary.file.path, vocabulary.file.metadata
    add_bos = metadata.flag(_KEY + "add_bos_token", default=add_bos)
    if add_bos and bos is None:
        raise ModelFormatError(path, f"{_KEY}add_bos_token is true, and there is no {_KEY}bos_token_id")
    marked = frozenset(vocabulary.of_kind(Kind.CONTROL, Kind.UNKNOWN))
    stated = {eos, vocabulary.token("eot"), vocabulary.token("eom")} - {None}
    ends = ends_by_name(vocabulary.ids, marked) | frozenset(token for token in stated if token is not None)
    return Tokenizer(
        library=library,
        pieces=Pieces(
            _piece(token, kind, spelled) for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        ),
        bos=bos,
        eos=eos,
        add_bos=add_bos,
        ends=ends,
        control=marked | ends,
        prefix=prefix,
    )


def _piece(token: str, kind: int, spelled: Callable[[str], bytes]) -> bytes:
    if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
        return token.encode()
    return BYTE_TOKENS.get(token, b"") if kind == Kind.BYTE else spelled(token)
