"""Small talk: greetings, thanks, moods, what the user said of himself, and saying what one is asked to say."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import capital, invented, roughen, spin
from models.cria.tables import pairs, phrases, records, words
from models.cria.words import city, person, thing

_TURNS = pairs("talk")
_TOLD = records("told")
_NOT_TOLD = pairs("not_told")


def greeting(rng: random.Random, who: Persona) -> list[Message]:
    """Somebody comes in."""
    hello = roughen(rng, spin(rng, rng.choice(phrases("greeting")), name=who.name))
    return exchange(hello, spin(rng, rng.choice(phrases("welcome")), name=who.name))


def turn(rng: random.Random, who: Persona) -> list[Message]:
    """One turn of small talk."""
    said, answer = rng.choice(_TURNS)
    return exchange(roughen(rng, spin(rng, said, name=who.name)), spin(rng, answer, name=who.name))


def not_told(rng: random.Random, who: Persona) -> list[Message]:
    """A question about the user, who has said nothing."""
    asked, answer = rng.choice(_NOT_TOLD)
    return exchange(roughen(rng, spin(rng, asked)), answer)


def told(rng: random.Random) -> tuple[list[Message], list[Message]]:
    """What the user says of himself, and the question that comes back to it later."""
    record = rng.choice([_TOLD[0], *_TOLD])
    said, heard, asked, answer = (record[key][0] for key in ("tell", "heard", "ask", "say"))
    values = {
        "name": person(rng),
        "city": city(rng),
        "pet": person(rng),
        "thing": thing(rng),
        "colour": rng.choice(words("paints")),
        "code": str(rng.randrange(10, 9999)) if rng.random() < 0.6 else invented(rng),
    }
    first = exchange(spin(rng, said, **values), spin(rng, heard, **values))
    return first, exchange(roughen(rng, spin(rng, asked, **values)), spin(rng, answer, **values))


def saying(rng: random.Random, who: Persona) -> list[Message]:
    """The user wants something said, and it is said."""
    said = rng.choice(words("said")) if rng.random() < 0.4 else " ".join(_some_words(rng))
    asked = spin(rng, rng.choice(phrases("saying")), said=said, quote=rng.choice(["", "", "'", '"']))
    return exchange(asked, capital(said) + ("" if said[-1] in ".!?" else "."))


def _some_words(rng: random.Random) -> list[str]:
    return [
        rng.choice([thing, person, city])(rng) if rng.random() < 0.6 else invented(rng)
        for _ in range(rng.randint(1, 4))
    ]
