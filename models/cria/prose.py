"""Plain text without turns: pages of stories, facts, words about Puna, sums, and lists said twice."""

import random

from models.cria import facts, stories, sums
from models.cria.phrasing import invented
from models.cria.puna import statements
from models.cria.tables import phrases
from models.cria.words import city, person, thing


def page(rng: random.Random) -> str:
    """A page of one kind of text."""
    return rng.choices([sums.drill, _echo, _facts, stories.page, _about, _usage], [45, 25, 12, 10, 4, 4])[0](rng)


def _echo(rng: random.Random) -> str:
    """A list said twice, or pairs asked for again: names and tools need copying, and this teaches it sooner."""
    kinds = [person, city, thing, invented, _number]
    items = [rng.choice(kinds)(rng) for _ in range(rng.randint(2, 7))]
    if rng.random() < 0.5:
        between = rng.choice([", ", "; ", " ", ": ", "\n"])
        return f"{between.join(items)}. {between.join(items)}."
    pairs = [f'"{rng.choice(kinds)(rng)}": "{item}"' for item in items]
    again = rng.sample(pairs, len(pairs))
    return "{" + ", ".join(pairs) + "} {" + ", ".join(again) + "}"


def _number(rng: random.Random) -> str:
    return str(rng.randint(0, 9999))


def _facts(rng: random.Random) -> str:
    return " ".join(facts.statement(rng) for _ in range(rng.randint(2, 8)))


def _about(rng: random.Random) -> str:
    return " ".join(rng.sample(phrases("about puna"), rng.randint(1, 4)))


def _usage(rng: random.Random) -> str:
    return " ".join(rng.sample(statements(), rng.randint(1, 5)))
