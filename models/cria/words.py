"""Words that the generators draw from: names, places and things."""

import random

from models.cria.phrasing import capital, invented
from models.cria.tables import words

NAMES = words("names")
CITIES = words("cities")
THINGS = words("things")


def person(rng: random.Random) -> str:
    """A name to be copied: mostly real, at times invented, so that copying is learnt and not the list."""
    return rng.choice(NAMES) if rng.random() < 0.5 else capital(invented(rng))


def city(rng: random.Random) -> str:
    """A city, at times one that nobody has heard of."""
    return rng.choice(CITIES) if rng.random() < 0.5 else capital(invented(rng))


def thing(rng: random.Random) -> str:
    """A thing, at times an unknown one."""
    return rng.choice(THINGS) if rng.random() < 0.6 else invented(rng)
