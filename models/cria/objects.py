"""Small JSON objects, made of what the user names."""

import json
import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import listed, spin
from models.cria.tables import phrases
from models.cria.toolbox import PARAMETERS, Value


def made(rng: random.Random, who: Persona) -> list[Message]:
    """An object with the keys and values that were asked for."""
    keys = rng.sample([*PARAMETERS, "age"], rng.randint(1, 4))
    values: dict[str, Value] = {key: rng.randint(1, 99) if key == "age" else PARAMETERS[key][1](rng) for key in keys}
    pairs = listed([f"{key} {value}" for key, value in values.items()])
    asked = spin(rng, rng.choice(phrases("asking for an object")), pairs=pairs)
    return exchange(asked, json.dumps(values, ensure_ascii=False))
