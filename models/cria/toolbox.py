"""Tools to put on the table: jobs that people know, and jobs made up on the spot, each with its question and result."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from models.cria.conversation import Tool
from models.cria.phrasing import capital, invented, spin
from models.cria.tables import phrases, records, words
from models.cria.words import city, person, thing

Value = str | int


@dataclass(frozen=True)
class Job:
    """A tool, a question that needs it, the arguments that the question gives, its result and what to say then."""

    tool: Tool
    question: str
    arguments: dict[str, Value]
    result: dict[str, Value]
    answer: str


@dataclass(frozen=True)
class Kind:
    """A family of jobs; `|` parts alternatives, and each parameter is `names:type=slot`."""

    names: str
    description: str
    parameters: tuple[str, ...]
    questions: str
    results: tuple[str, ...]
    answer: str


def _kinds() -> list[Kind]:
    """The jobs of text/tools.txt."""
    return [
        Kind(row["name"][0], row["does"][0], tuple(row["takes"]), row["ask"][0], tuple(row["gives"]), row["say"][0])
        for row in records("tools")
    ]


KINDS = _kinds()


def _slots(rng: random.Random) -> dict[str, Value]:
    """A value for every blank that a question or a result may have."""
    return _numbers(rng) | _names(rng) | _texts(rng) | {slot: rng.choice(words(kind)) for slot, kind in _LISTED.items()}


_LISTED = {"sky": "skies", "day": "days", "room": "rooms", "language": "tongues", "sent": "sent", "set": "set"}


def _numbers(rng: random.Random) -> dict[str, Value]:
    a, b = rng.randint(0, 999), rng.randint(0, 999)
    c = rng.randint(2, 9)
    formulas = {
        f"{a} + {b}": a + b,
        f"{a}-{b}": a - b,
        f"{a} * {c}": a * c,
        f"({a} + {b}) * {c}": (a + b) * c,
        f"{a} - {b} + {c}": a - b + c,
        f"{a}+{b}": a + b,
    }
    expression, value = rng.choice(list(formulas.items()))
    return {
        "a": a,
        "b": b,
        "total": a + b,
        "times": a * b,
        "n": rng.randint(2, 60),
        "small": rng.randint(1, 6),
        "temp": rng.randint(-12, 41),
        "number": rng.choice([rng.randint(0, 99), rng.randint(100, 99_999), rng.randint(100, 999_999)]),
        "amount": rng.choice([rng.randint(1, 99), rng.randint(100, 9_999)]),
        "expression": expression,
        "value": value,
        "code_line": f"print({a} + {b})",
        "clock": f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
    }


def _names(rng: random.Random) -> dict[str, Value]:
    money, other = rng.sample(words("moneys"), 2)
    owner = person(rng).lower()
    ending = rng.choice(["txt", "md", "py", "csv", "json"])
    return {
        "city": city(rng),
        "city2": city(rng),
        "name": person(rng),
        "thing": thing(rng),
        "word": invented(rng),
        "Word": capital(invented(rng)),
        "money": money,
        "other": other,
        "mail": f"{owner}@{invented(rng)}.{rng.choice(['com', 'org', 'net'])}",
        "code": f"{rng.choice('ABCDEFGHKLMNPRSTX')}{rng.choice(['', '-', 'A', 'B', 'X'])}{rng.randint(10, 9999)}",
        "path": rng.choice(
            [f"{invented(rng)}.{ending}", f"/{invented(rng)}/{thing(rng)}.txt", f"{thing(rng)}.{ending}"]
        ),
        "folder": rng.choice([f"/{thing(rng)}", f"/home/{owner}", invented(rng), "src", "docs", "/tmp"]),
    }


def _texts(rng: random.Random) -> dict[str, Value]:
    state = rng.choice(["here", "broken", "ready", "lost"])
    some = [rng.choice([thing, invented, person])(rng) for _ in range(rng.randint(1, 3))]
    more = [rng.choice([thing, invented])(rng) for _ in range(rng.randint(1, 5))]
    blanks = {"thing": thing(rng), "state": state, "name": person(rng), "city": city(rng), "word": invented(rng)}
    return {
        "said": spin(rng, rng.choice(words("messages")), **blanks),
        "query": " ".join(some),
        "found": capital(" ".join(more)),
        "quote": rng.choice(["'", '"']),
    }


def _definition(rng: random.Random, name: str, description: str, types: dict[str, str]) -> Tool:
    """A tool in OpenAI form; descriptions of parameters and `required` come and go, as they do in life."""
    properties = {param: {"type": kind} for param, kind in types.items()}
    parameters = {"type": "object", "properties": properties} | (
        {"required": list(types)} if rng.random() < 0.7 else {}
    )
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def known_job(rng: random.Random, kind: Kind) -> Job:
    """A job of this kind, with its own names and values."""
    slots = _slots(rng)
    params = [(spin(rng, f"[{spec.split(':')[0]}]"), *spec.split(":")[1].split("=")) for spec in kind.parameters]
    tool = _definition(
        rng, spin(rng, f"[{kind.names}]"), spin(rng, kind.description), {name: type_ for name, type_, _ in params}
    )
    results = {spin(rng, f"[{spec.split('=')[0]}]"): slots[spec.split("=")[1]] for spec in kind.results}
    question = spin(rng, f"[{kind.questions}]", **slots)
    return Job(
        tool,
        capital(question),
        {name: slots[slot] for name, _, slot in params},
        results,
        spin(rng, kind.answer, **slots),
    )


PARAMETERS: dict[str, tuple[str, Callable[[random.Random], Value]]] = {
    "name": ("string", person),
    "id": ("integer", lambda rng: rng.randint(1, 9999)),
    "city": ("string", city),
    "level": ("integer", lambda rng: rng.randint(1, 100)),
    "label": ("string", invented),
    "owner": ("string", person),
    "number": ("integer", lambda rng: rng.randint(1, 999)),
    "size": ("string", lambda rng: rng.choice(["small", "medium", "large"])),
    "colour": ("string", lambda rng: rng.choice(words("paints"))),
    "place": ("string", city),
    "code": ("string", invented),
    "day": ("string", lambda rng: rng.choice([*words("days"), "today", "tomorrow"])),
    "speed": ("number", lambda rng: rng.randint(1, 200)),
    "mode": ("string", lambda rng: rng.choice(["fast", "slow", "quiet", "safe", "auto"])),
    "user": ("string", person),
    "item": ("string", thing),
}


def made_up_job(rng: random.Random) -> Job:
    """A job that nobody has seen: a verb, a noun and parameters; at times only an invented word."""
    verb, noun = rng.choice(words("verbs")), rng.choice(words("nouns"))
    strange = rng.random() < 0.3
    if strange:
        verb, noun = invented(rng), invented(rng)
    name = rng.choice(
        [f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{capital(noun)}", f"{noun}_{verb}", f"{verb}-{noun}"]
    )
    names = rng.sample(list(PARAMETERS), rng.choice([1, 1, 2, 2, 3]))
    arguments = {param: PARAMETERS[param][1](rng) for param in names}
    tool = _definition(
        rng,
        name,
        rng.choice([f"{capital(verb)} a {noun}.", f"{capital(verb)} the {noun}.", ""]),
        {p: PARAMETERS[p][0] for p in names},
    )
    pairs = " and ".join(f"{param} {value}" for param, value in arguments.items())
    pairs_is = " and ".join(f"the {param} is {value}" for param, value in arguments.items())
    asked = spin(
        rng,
        rng.choice(phrases("using a tool")),
        verb=verb,
        noun=noun,
        tool=name,
        pairs=pairs,
        Pairs_is=capital(pairs_is),
    )
    result: dict[str, Value] = {"status": rng.choice(["ok", "done", "ready", "accepted"])}
    if rng.random() < 0.5:
        result[rng.choice(["id", "number", "ticket", "count", "code"])] = rng.randint(1, 9999)
    return Job(tool, capital(asked), arguments, result, capital(report(result)))


def report(result: dict[str, Value]) -> str:
    """What a result says when nothing better is known."""
    return "the result is: " + ", ".join(f"{key} {value}" for key, value in result.items()) + "."


def any_job(rng: random.Random) -> Job:
    """A known job or one made up."""
    return made_up_job(rng) if rng.random() < 0.3 else known_job(rng, rng.choice([KINDS[0], *KINDS]))
