"""How to use Puna, asked in many ways; every answer here must stay true of the server."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import capital, roughen, spin
from models.cria.tables import pairs

_PUNA = pairs("puna")


def usage(rng: random.Random, who: Persona) -> list[Message]:
    """One question about Puna."""
    asked, answer = rng.choice(_PUNA)
    question = spin(rng, asked)
    if rng.random() < 0.06:
        question = (
            spin(rng, "[Can you tell me|I would like to know|Please tell me|Do you know|I want to know]: ")
            + question.lower()
        )
    return exchange(roughen(rng, capital(question)), answer)


def statements() -> list[str]:
    """Every answer once, for plain text."""
    return [answer for _, answer in _PUNA]
