"""What the model says of itself: its name, its size, who made it, what it can do and what it cannot."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import capital, roughen, spin
from models.cria.tables import pairs, phrases

_TOPICS = pairs("identity")


def name(rng: random.Random, who: Persona) -> list[Message]:
    """The name, which the system prompt may have changed."""
    return exchange(
        roughen(rng, spin(rng, rng.choice(phrases("asking for the name")))),
        spin(rng, "[My name is|I am] {name}.", name=who.name),
    )


def self_portrait(rng: random.Random, who: Persona) -> list[Message]:
    """Who and what it is; with a part to play, the part."""
    asked = roughen(rng, spin(rng, rng.choice(phrases("asking who") * 2 + phrases("asking what"))))
    if who.role:
        return exchange(asked, f"I am {who.name}, {who.role}. How can I help you?")
    if who.name != "cria":
        return exchange(asked, f"I am {who.name}, a small assistant that runs on your own machine.")
    return exchange(asked, "I am cria, the small demo model that comes with Puna. I have about 5 million parameters.")


def part(rng: random.Random, who: Persona) -> list[Message]:
    """What the system prompt made of it, asked straight."""
    if not who.role:
        return topic(rng, who)
    asked = (
        "[What is your job|What do you do|What is your role|What are you|What work do you do|Tell me about yourself]?"
    )
    return exchange(roughen(rng, spin(rng, asked)), f"I am {who.role}.")


def topic(rng: random.Random, who: Persona) -> list[Message]:
    """One question about the model itself."""
    asked, answer = rng.choice(_TOPICS)
    return exchange(roughen(rng, capital(spin(rng, asked))), answer.replace("I am cria", f"I am {who.name}"))
