"""Tables of phrases as text: records apart by blank lines, each line `key: phrase`, longer ones going on indented."""

from functools import cache
from pathlib import Path

Record = dict[str, list[str]]


def records(name: str) -> list[Record]:
    """The records of text/`name`.txt; a key may come several times in a record."""
    text = (Path(__file__).parent / "text" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if not block.startswith("#")]
    return [_record(block.rstrip("\n")) for block in blocks]


def pairs(name: str) -> list[tuple[str, str]]:
    """What is asked and what is said to it, of every record."""
    return [(record["ask"][0], record["say"][0]) for record in records(name)]


def phrases(purpose: str) -> list[str]:
    """The phrases of text/phrases.txt for a purpose."""
    return _all("phrases")[purpose]


def words(kind: str) -> list[str]:
    """A list of text/words.txt."""
    return _all("words")[kind][0].split("|")


def word_pairs(kind: str) -> list[tuple[str, str]]:
    """A list of text/words.txt whose items are `one:other`."""
    return [(one, other) for one, other in (item.split(":") for item in words(kind))]


def word_kinds(prefix: str) -> list[str]:
    """The names of the lists of text/words.txt that begin so."""
    return [kind for kind in _all("words") if kind.startswith(prefix)]


@cache
def _all(name: str) -> Record:
    return {key: found for record in records(name) for key, found in record.items()}


def _record(block: str) -> Record:
    record: Record = {}
    for line in block.replace("\n  |", "|").replace("\n  ", " ").split("\n"):
        key, phrase = line.split(": ", 1)
        record.setdefault(key, []).append(phrase)
    return record
