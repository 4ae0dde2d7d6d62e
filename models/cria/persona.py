"""The system prompts of the corpus: none, a plain one, or one that gives the assistant a name and a part to play."""

import random

from models.cria.conversation import Persona
from models.cria.phrasing import spin, with_article
from models.cria.tables import phrases
from models.cria.words import person


def persona(rng: random.Random) -> Persona:
    """Somebody for one conversation to be."""
    kind = rng.random()
    if kind < 0.52:
        return Persona()
    if kind < 0.68:
        return Persona(system=spin(rng, rng.choice(phrases("plain system"))))
    name = person(rng)
    if kind < 0.92:
        return Persona(name=name, system=spin(rng, rng.choice(phrases("named system")), name=name))
    role = with_article(spin(rng, phrases("part")[0]))
    system = spin(
        rng, "[You are|Play the part of|Act as] {name}, {role}.[||| Be brief.| Answer kindly.]", name=name, role=role
    )
    return Persona(name=name, role=role, system=system)
