"""The corpus: an endless, repeatable mixture of everything that cria is to learn."""

import random
import re
from collections.abc import Callable, Iterator

from models.cria import facts, identity, objects, prose, puna, stories, sums, talk, tools, unknown
from models.cria.conversation import Conversation, Document, Message, Persona, Prose, Tool
from models.cria.persona import persona
from models.cria.toolbox import KINDS, any_job, known_job

Ability = Callable[[random.Random, Persona], list[Message]]

_MIXTURE: dict[Ability, float] = {
    talk.greeting: 6,
    talk.turn: 9,
    talk.saying: 4,
    identity.name: 3,
    identity.self_portrait: 4,
    identity.topic: 10,
    puna.usage: 19,
    facts.fact: 20,
    sums.sum_asked: 16,
    sums.sum_told: 2,
    sums.counting: 3,
    stories.story: 3,
    stories.poem: 1.5,
    stories.sentence: 4,
    unknown.cannot_know: 9,
    unknown.cannot_do: 6,
    unknown.noise: 1.5,
    objects.made: 2,
}
_ABOUT_SELF = {identity.name: 3.0, identity.self_portrait: 2.0, identity.part: 2.0, talk.greeting: 1.0}
_TURNS = [1] * 55 + [2] * 20 + [3] * 12 + [4] * 6 + [5] * 4 + [6] * 3


def exchanges(rng: random.Random, who: Persona, count: int) -> list[Message]:
    """`count` turns of mixed abilities; who was given a name is asked for it more often."""
    messages: list[Message] = []
    for at in range(count):
        ability: Ability
        if who.name != "cria" and rng.random() < 0.45:
            ability = rng.choices(list(_ABOUT_SELF), list(_ABOUT_SELF.values()))[0]
        elif at == 0 and rng.random() < 0.02:
            ability = talk.not_told
        elif at > 0 and rng.random() < 0.15:
            ability = talk.turn
        else:
            ability = rng.choices(list(_MIXTURE), list(_MIXTURE.values()))[0]
        messages += ability(rng, who)
    return messages


def _opened(who: Persona) -> list[Message]:
    return [{"role": "system", "content": who.system}] if who.system else []


def _plain(rng: random.Random) -> Conversation:
    who = persona(rng)
    if rng.random() < 0.06:
        first, later = talk.told(rng)
        between = exchanges(rng, who, rng.choice([0, 0, 1, 1, 2, 3]))
        return Conversation(_opened(who) + first + between + later)
    count = rng.choice(_TURNS) if rng.random() < 0.994 else rng.randint(12, 40)
    return Conversation(_opened(who) + exchanges(rng, who, count))


def _with_tools(rng: random.Random) -> Conversation:
    who = persona(rng)
    kind = rng.random()
    if kind < 0.05:
        messages, tool = tools.called_twice(rng)
        return Conversation(_opened(who) + messages, tools.around(rng, tool))
    job = any_job(rng)
    table = tools.around(rng, job.tool)
    if kind < 0.25:
        return Conversation(_opened(who) + _needing_none(rng, who, table, rng.choice([1, 1, 2])), table)
    if kind < 0.3:
        other = known_job(rng, rng.choice([kind for kind in KINDS if kind.answer[0] != "{"]))  # no sums
        known = {tool["function"]["description"][:6] for tool in table} | {tool["function"]["name"] for tool in table}
        if other.tool["function"]["description"][:6] not in known and other.tool["function"]["name"] not in known:
            return Conversation(_opened(who) + tools.missing(rng, other), table)
    before = _needing_none(rng, who, table, 1) if rng.random() < 0.15 else []
    after = _needing_none(rng, who, table, 1) if rng.random() < 0.15 else []
    return Conversation(_opened(who) + before + tools.called(rng, job) + after, table)


_NEEDING_NO_TOOL: dict[Ability, float] = {
    talk.greeting: 3,
    talk.turn: 4,
    identity.name: 2,
    identity.self_portrait: 2,
    identity.topic: 3,
    puna.usage: 4,
    facts.fact: 6,
    stories.sentence: 1,
    stories.story: 1,
    unknown.noise: 1,
}
_COUNTING = re.compile(r"number|sum|expression|arithmetic|Python", re.IGNORECASE)  # what such a tool says of itself


def _needing_none(rng: random.Random, who: Persona, table: list[Tool], count: int) -> list[Message]:
    """Turns that no tool on the table would help with: sums only where nothing there can count, and no news."""
    mixture = dict(_NEEDING_NO_TOOL)
    if not any(_COUNTING.search(tool["function"]["description"]) for tool in table):
        mixture[sums.sum_asked] = 6
    abilities = rng.choices(list(mixture), list(mixture.values()), k=count)
    return [message for ability in abilities for message in ability(rng, who)]


def document(rng: random.Random) -> Document:
    """One document of the corpus."""
    kind = rng.random()
    if kind < 0.14:
        return Prose(prose.page(rng))
    return _with_tools(rng) if kind < 0.38 else _plain(rng)


def documents(seed: int) -> Iterator[Document]:
    """The corpus of a seed, without end."""
    rng = random.Random(seed)
    while True:
        yield document(rng)
