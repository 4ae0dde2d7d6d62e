"""A few hundred plain facts, each asked in several ways."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import capital, listed, roughen, spin, with_article
from models.cria.tables import pairs, phrases, records, word_kinds, word_pairs, words

Pairs = list[tuple[str, str]]


def _ring(kind: str) -> Pairs:
    """Each word of a circle with the one that follows."""
    circle = words(kind)
    return list(zip(circle, circle[1:] + circle[:1], strict=True))


def _turned(pairs: Pairs) -> Pairs:
    return [(other, one) for one, other in pairs]


_MADE: dict[str, Pairs] = {
    "following day": _ring("days"),
    "day before": _turned(_ring("days")),
    "following month": _ring("months"),
    "month before": _turned(_ring("months")),
    "opposites reversed": [(one, other) for one, other in _turned(word_pairs("opposites")) if one != "short"],
}
_FAMILIES = records("families")
_PLAIN = pairs("facts")
_PLACES = [(country, city) for country, city in word_pairs("capitals") if " " not in city]


def _of_family(rng: random.Random) -> tuple[str, str]:
    family = rng.choice(_FAMILIES)
    about = family["about"][0]
    one, other = rng.choice(_MADE[about] if about in _MADE else word_pairs(about))
    a_one = with_article(one)
    blanks = {"one": one, "other": other, "One": capital(one), "a_one": a_one, "A_one": capital(a_one)}
    return spin(rng, family["ask"][0], **blanks), spin(rng, family["say"][0], **blanks)


def _some(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(word_kinds("some "))
    count = rng.randint(2, 5)
    asked = phrases("asking for some")[0]
    written = rng.choice([words("numbers")[count], str(count)])
    return spin(rng, asked, count=written, kind=kind.removeprefix("some ")), capital(listed(words(kind)[:count])) + "."


def _one_word(rng: random.Random) -> tuple[str, str]:
    prefix = spin(rng, phrases("asking for one word")[0])
    if rng.random() < 0.5:
        country, city = rng.choice(_PLACES)
        return f"{prefix}what is the capital of {country}?", f"{city}."
    what, colour = rng.choice(word_pairs("colours"))
    return f"{prefix}what colour is {what}?", f"{capital(colour)}."


def _plain(rng: random.Random) -> tuple[str, str]:
    asked, answer = rng.choice(_PLAIN)
    return spin(rng, asked), answer


def fact(rng: random.Random, who: Persona) -> list[Message]:
    """One plain fact, at times asked for politely."""
    asked, answer = rng.choices([_of_family, _plain, _some, _one_word], [20, 22, 2, 1])[0](rng)
    if rng.random() < 0.06:
        asked = rng.choice(phrases("asking politely")) + asked
    return exchange(roughen(rng, capital(asked)), answer)


def statement(rng: random.Random) -> str:
    """A fact that can stand without its question."""
    answers = (rng.choice([_of_family, _plain])(rng)[1] for _ in range(100))
    return next(a for a in answers if a.count(" ") > 2 and not a.startswith(("It ", "They ", "Yes", "No", "So")))
