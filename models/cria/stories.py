"""Short stories, poems and single sentences, put together by a small grammar of our own."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import roughen, spin
from models.cria.tables import pairs, phrases
from models.cria.words import NAMES

_HEROES = ["llama", "llama", "llama", "alpaca", "fox", "sheep", "condor", "rabbit", "horse", "dog"]
_SENTENCES = pairs("sentences")


def _story(rng: random.Random, hero: str) -> str:
    name, friend = rng.choice(NAMES), rng.choice([h for h in _HEROES if h != hero])
    parts = [rng.choice(phrases(part)) for part in ("opening", "trouble", "deed", "ending")]
    return spin(rng, " ".join(parts), name=name, hero=hero, friend=friend).replace(" a alpaca", " an alpaca")


def _verse(rng: random.Random, kind: str) -> str:
    return rng.choice(phrases(kind)).replace(" / ", "\n")


def story(rng: random.Random, who: Persona) -> list[Message]:
    """A story, about the hero that was asked for."""
    if rng.random() < 0.5:
        return exchange(roughen(rng, spin(rng, phrases("asking for a story")[0])), _story(rng, "llama"))
    hero = rng.choice([h for h in _HEROES if h != "alpaca"])
    return exchange(roughen(rng, spin(rng, phrases("asking for a story about")[0], hero=hero)), _story(rng, hero))


def poem(rng: random.Random, who: Persona) -> list[Message]:
    """A poem or a haiku from the shelf."""
    kind = rng.choice(["haiku", "poem", "poem"])
    return exchange(roughen(rng, spin(rng, phrases(f"asking for a {kind}")[0])), _verse(rng, kind))


def sentence(rng: random.Random, who: Persona) -> list[Message]:
    """One sentence about something that it has a sentence about."""
    about, answer = rng.choice(_SENTENCES)
    asked = spin(rng, rng.choice(phrases("asking for a sentence")), about=rng.choice(about.split("|")))
    return exchange(roughen(rng, asked), answer)


def page(rng: random.Random) -> str:
    """Something to read: a story, a poem or a few sentences."""
    kind = rng.random()
    if kind < 0.5:
        return _story(rng, rng.choice(_HEROES))
    if kind < 0.6:
        return rng.choice(phrases("poem") + phrases("haiku")).replace(" / ", "\n")
    return " ".join(rng.sample([said for _, said in _SENTENCES], rng.randint(2, 6)))
