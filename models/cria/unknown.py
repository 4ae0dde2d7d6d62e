"""What the model cannot know or do, and how it says so."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import capital, invented, roughen, spin
from models.cria.tables import phrases, words
from models.cria.words import CITIES, person, thing

_NEWS_ANSWER = "I do not know. I cannot see the news, the clock or the world outside this conversation."
_PEOPLE_ANSWER = "I do not know. Nobody has told me about {name}."
_PRIVATE_ANSWER = "I do not know that. I know only what you write in this conversation."
_WORDS_ANSWER = "I do not know what {word} is. I am a very small model."
_HARD_ANSWER = "I know too little about {topic}. I am a very small model; a bigger one will know more."
_WORK_ANSWER = "That is beyond me: I am a very small model. Load a bigger one with: puna serve MODEL"
_NOISE_ANSWER = "I did not understand that. Please ask me in plain English."


def cannot_know(rng: random.Random, who: Persona) -> list[Message]:
    """A question whose answer is not in any small model."""
    return rng.choice([_news, _news, _people, _people, _private, _word, _word, _far, _hard, _hard, _hard])(rng)


def cannot_do(rng: random.Random, who: Persona) -> list[Message]:
    """Work for a bigger model."""
    values = {
        "thing": thing(rng),
        "name": person(rng),
        "city": rng.choice(CITIES),
        "n": rng.randint(3, 99),
        "quote": rng.choice(["'", '"']),
    }
    asked = spin(rng, rng.choice(phrases("work")), **values)
    return exchange(roughen(rng, capital(asked) + ("." if asked[-1] not in ".?!" else "")), _WORK_ANSWER)


def noise(rng: random.Random, who: Persona) -> list[Message]:
    """Something that is not a question at all."""
    typed = rng.choice([_keys, _keys, _babble, _babble, _marks, _things])(rng)
    return exchange(typed, _NOISE_ANSWER)


def _keys(rng: random.Random) -> str:
    return "".join(rng.choice("asdfghjklqwertyuiop") for _ in range(rng.randint(6, 14)))


def _babble(rng: random.Random) -> str:
    return " ".join(invented(rng) for _ in range(rng.randint(2, 6))) + rng.choice(["", ".", "?", "!"])


def _marks(rng: random.Random) -> str:
    return rng.choice(["?", "??", "...", "!", "-", "#", "!!!", "???", "*", "&%$", ":", "()", ";-)"])


def _things(rng: random.Random) -> str:
    return " ".join(thing(rng) for _ in range(rng.randint(2, 5)))


def _news(rng: random.Random) -> list[Message]:
    asked = spin(rng, rng.choice(phrases("news")), city=rng.choice(CITIES))
    return exchange(roughen(rng, asked.replace(" ?", "?")), _NEWS_ANSWER)


def _people(rng: random.Random) -> list[Message]:
    name = person(rng)
    asked = spin(rng, rng.choice(phrases("people")), name=name, surname=capital(invented(rng)), city=rng.choice(CITIES))
    return exchange(asked, spin(rng, _PEOPLE_ANSWER, name=name))


def _private(rng: random.Random) -> list[Message]:
    return exchange(roughen(rng, spin(rng, rng.choice(phrases("private")))), _PRIVATE_ANSWER)


def _word(rng: random.Random) -> list[Message]:
    word = invented(rng)
    shape = rng.choice(phrases("strange word"))
    asked = spin(rng, shape, word=word, Word=capital(word), thing=thing(rng))
    return exchange(capital(asked), spin(rng, _WORDS_ANSWER, word=capital(word) if "{Word}" in shape else word))


def _far(rng: random.Random) -> list[Message]:
    country = rng.choice(words("far countries"))
    asked = spin(rng, phrases("far country")[0], country=country)
    return exchange(roughen(rng, asked), f"I do not know that about {country}. I know only a few countries.")


def _hard(rng: random.Random) -> list[Message]:
    topic = rng.choice(words("topics")) if rng.random() < 0.85 else f"the {thing(rng)} of {person(rng)}"
    return exchange(
        capital(spin(rng, rng.choice(phrases("hard topic")), topic=topic)), spin(rng, _HARD_ANSWER, topic=topic)
    )
