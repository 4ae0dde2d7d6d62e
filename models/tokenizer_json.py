"""A Tokenizer from tokenizer.json and the files beside it in a model folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from models.library import Library
from models.pieces import SPACE_MARK, Pieces, byte_level_piece, sentencepiece_piece
from models.tokenizer import Tokenizer, ends_by_name
from quant.checkpoint import OpenFile
from quant.errors import ModelFormatError, UnsupportedModel
from quant.json_file import MAX_JSON, read_json
from quant.mlx_folder import MLXFolder

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
_MAX_TOKENS = 1 << 22  # an id costs memory even where no token has it


def folder_tokenizer(folder: MLXFolder) -> Tokenizer:
    """The Tokenizer of the folder; nothing in it is run, and no class that it names is looked for."""
    library = _library(folder)
    settings = optional_json(folder, TOKENIZER_CONFIG)
    ids: dict[str, int] = library.parsing.get_vocab(with_added_tokens=True)
    most = max(ids.values(), default=-1)
    if not 0 <= most < _MAX_TOKENS:
        raise ModelFormatError(folder.path / TOKENIZER, f"{len(ids)} tokens with ids up to {most}")
    added = library.parsing.get_added_tokens_decoder()
    control = frozenset(token for token, it in added.items() if it.special)
    bos, eos = (_named(folder, settings, ids, name) for name in ("bos_token", "eos_token"))
    ends = ends_by_name(ids, control) | frozenset(_stated_ends(folder)) | ({eos} if eos is not None else frozenset())
    return Tokenizer(
        library=library,
        pieces=Pieces(_pieces(ids, set(added), most + 1, _spelling(folder, library))),
        bos=bos,
        eos=eos,
        add_bos=_adds_bos(folder, library, settings, bos),
        ends=ends,
        control=control | ends,
        prefix=_prefix(library),
    )


def optional_json(folder: MLXFolder, name: str) -> dict[str, Any]:
    """The file's object; an absent file says nothing."""
    return read_json(folder.path / name) if (folder.path / name).exists() else {}


def _library(folder: MLXFolder) -> Library:
    path = folder.path / TOKENIZER
    if not path.exists():
        raise UnsupportedModel(folder.path, f"has no {TOKENIZER}; other kinds of tokenizer are not read")
    file = OpenFile(path)
    try:
        if file.size > MAX_JSON:
            raise ModelFormatError(path, f"{file.size} bytes of JSON; at most {MAX_JSON} are read")
        raw = file.read(0, file.size).tobytes()
    finally:
        file.close()
    try:
        return Library.of(tokenizers.Tokenizer.from_buffer(raw), tokenizers.Tokenizer.from_buffer(raw))
    except Exception as fault:  # the library raises plain Exception
        raise ModelFormatError(path, f"the tokenizer cannot be built: {fault}") from fault


def _named(folder: MLXFolder, settings: Mapping[str, Any], ids: Mapping[str, int], name: str) -> int | None:
    """The id of a token that tokenizer_config.json writes out, as a text or as an object with a text in it."""
    token = settings.get(name)
    if type(token) is dict:
        token = token.get("content")
    if token is None:
        return None
    if type(token) is not str or token not in ids:
        raise ModelFormatError(folder.path / TOKENIZER_CONFIG, f"{name} is {token!r}, which is not a token")
    return ids[token]


def _stated_ends(folder: MLXFolder) -> Iterator[int]:
    """Every id that generation_config.json or config.json calls the end: one, a list, or none."""
    for name, settings in (
        (GENERATION_CONFIG, optional_json(folder, GENERATION_CONFIG)),
        ("config.json", folder.config),
    ):
        stated = settings.get("eos_token_id")
        for token in stated if type(stated) is list else [] if stated is None else [stated]:
            if type(token) is not int or not 0 <= token < _MAX_TOKENS:
                raise ModelFormatError(folder.path / name, f"eos_token_id holds {token!r}, which is not a token id")
            yield token


def _adds_bos(folder: MLXFolder, library: Library, settings: Mapping[str, Any], bos: int | None) -> bool:
    """What tokenizer_config.json says, and where it is silent what the tokenizer puts in front of an empty text."""
    said = settings.get("add_bos_token")
    if said is None:
        return bos is not None and bos in library.parsing.encode("").ids[:1]
    if type(said) is not bool or (said and bos is None):
        raise ModelFormatError(folder.path / TOKENIZER_CONFIG, f"add_bos_token is {said!r} and bos_token is {bos!r}")
    return said


def _spelling(folder: MLXFolder, library: Library) -> Callable[[str], bytes]:
    """How tokens are written, as the tokenizer's own decoder shows it."""
    steps = _decoder_steps(library)
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return byte_level_piece
    marks = {step["pattern"].get("String") for step in steps if step["type"] == "Replace"}
    if SPACE_MARK in marks or kinds & {"Metaspace", "ByteFallback"}:
        return sentencepiece_piece
    raise UnsupportedModel(folder.path / TOKENIZER, f"a decoder of {sorted(kinds)} is not supported")


def _decoder_steps(library: Library) -> list[dict[str, Any]]:
    """The decoder as the library writes it into a tokenizer.json; a sequence of them laid out flat."""
    decoder = library.parsing.decoder
    if decoder is None:
        return []
    written = json.loads(decoder.__getstate__())
    return written["decoders"] if written["type"] == "Sequence" else [written]


def _pieces(ids: Mapping[str, int], added: set[int], size: int, spelling: Callable[[str], bytes]) -> Iterator[bytes]:
    """The bytes of every id; an id without a token has none, and an added token is taken as it is written."""
    tokens = [""] * size
    for token, i in ids.items():
        tokens[i] = token
    return (token.encode() if i in added else spelling(token) for i, token in enumerate(tokens))


def _prefix(library: Library) -> str:
    """The space that SentencePiece puts in front of a text."""
    first = library.plain.encode("a", add_special_tokens=False).tokens[:1]
    return " " if first and first[0].startswith(SPACE_MARK) else ""
