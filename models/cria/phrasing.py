"""Phrasing turns one written line into many: alternatives, small roughness, and words that nobody has seen."""

import random
import re

from models.cria.tables import words

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_ONSETS = words("onsets")
_VOWELS = words("vowels")
_CODAS = ["", "", "", *words("codas")]


def spin(rng: random.Random, line: str, **values: object) -> str:
    """`line` with every `[a|b]` settled, innermost first, and then every `{name}` filled in."""
    while (choice := _CHOICE.search(line)) is not None:
        picked = rng.choice(choice[1].split("|"))
        line = line[: choice.start()] + picked + line[choice.end() :]
    return line.format(**values) if values else line


def roughen(rng: random.Random, question: str) -> str:
    """`question` as people type it: mostly as it is, at times in lower case, without its mark, or with a slip."""
    if rng.random() < 0.07 and question[0].isupper() and not question.startswith(("I ", "I'")):
        question = (
            rng.choice(["Please", "Hey,", "OK,", "Hi,", "So,", "Now,"]) + " " + question[0].lower() + question[1:]
        )
    if rng.random() < 0.08:
        bare = question.rstrip("?.!")
        question = (
            bare + rng.choice([", please", " please", " then", ", thanks", " for me", " now"]) + question[len(bare) :]
        )
    if rng.random() < 0.22:
        question = question.rstrip("?.!")
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.025 and len(question) > 12:
        question = _slip(rng, question)
    return question


def _slip(rng: random.Random, question: str) -> str:
    """`question` with one pair of neighbouring letters exchanged, or one letter lost."""
    at = rng.randrange(1, len(question) - 2)
    if not question[at : at + 2].isalpha():
        return question
    if rng.random() < 0.5:
        return question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return question[:at] + question[at + 1 :]


def invented(rng: random.Random) -> str:
    """A word of two or three syllables that means nothing, in lower case."""
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice([1, 2, 2])))
    return "".join(parts) + rng.choice(_ONSETS) + rng.choice(_VOWELS)[0] + rng.choice(_CODAS)


def capital(text: str) -> str:
    """`text` with its first letter large and the rest untouched."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`noun` as one of its kind."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(items: list[str]) -> str:
    """`items` as English lists them: a, b and c."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
