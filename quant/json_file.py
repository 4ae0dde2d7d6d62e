"""Reads a JSON object from a file of bounded size, and says what is wrong with it in one line."""

import json
from pathlib import Path
from typing import Any

from quant.checkpoint import OpenFile
from quant.errors import ModelFormatError

# Large tokenizer.json files have 35 MB; a configuration has kilobytes.
MAX_JSON = 1 << 26


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    file = OpenFile(path)
    try:
        if file.size > limit:
            raise ModelFormatError(path, f"{file.size} bytes of JSON; at most {limit} are read")
        return parse_json(path, file.read(0, file.size).tobytes())
    finally:
        file.close()


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """A key may not occur twice: readers differ on which of the two they believe."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique)
    except RecursionError as fault:
        raise ModelFormatError(path, "JSON nested too deeply") from fault
    except ValueError as fault:  # also a text that is not UTF-8, and a number of absurd length
        raise ModelFormatError(path, f"not valid JSON: {fault}") from fault
    if type(value) is not dict:
        raise ModelFormatError(path, "JSON that is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
