"""Asks the shipped file questions that are not in the corpus, and prints the share right per ability."""

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.cria.conversation import Message, Tool
from models.cria.reader import Reader, read
from models.cria.render import chat
from models.cria.tables import records


@dataclass(frozen=True)
class Question:
    """A prompt and the pattern that a right answer matches."""

    ability: str
    messages: list[Message]
    right: str
    tools: list[Tool] = field(default_factory=list)


def _asked() -> Iterator[Question]:
    for record in records("exam"):
        for prompt, right in zip(record["ask"], record["say"], strict=True):
            yield Question(record["about"][0], [{"role": "user", "content": prompt}], right)


_NAMES = ["Pablo", "Ada", "Zelda", "Mirko", "Tavrin", "Oberon", "Katya", "Sunflower", "Brenda", "Quillon"]
_SYSTEMS = ["You are {}.", "Your name is {}, a helpful assistant.", "You are a friendly assistant called {}. Be brief."]
_PLACES = [
    "Paris",
    "Oslo",
    "Springfield",
    "Tarvolen",
    "Lake Town",
    "Porto",
    "Brimley",
    "Ulan Bator",
    "Austin",
    "Zagora",
]


def _names() -> Iterator[Question]:
    for at, name in enumerate(_NAMES):
        for prompt in ("What is your name?", "Who are you?"):
            system = {"role": "system", "content": _SYSTEMS[at % 3].format(name)}
            yield Question("name given", [system, {"role": "user", "content": prompt}], rf"\b{name}\b")


def _sums() -> Iterator[Question]:
    rng = random.Random(1)
    forms = ["What is {} {} {}?", "{}{}{}", "How much is {} {} {}?", "calculate {} {} {} please"]
    for at in range(60):
        sign, top = ("+", 100) if at < 25 else ("-", 100) if at < 45 else ("*", 12)
        a, b = sorted((rng.randint(0, top), rng.randint(0, top)), reverse=True)
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        prompt = forms[at % 4].format(a, sign, b)
        yield Question(f"sums {sign}", [{"role": "user", "content": prompt}], rf"(= |is ){value}\.")


def tool(name: str, description: str, **types: str) -> Tool:
    """A tool in OpenAI form."""
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in types.items()}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TABLE = [
    tool("get_weather", "Get the weather in a city.", city="string"),
    tool("add", "Add two numbers.", a="number", b="number"),
    tool("search_docs", "Search the documents.", query="string"),
]


def _tools() -> Iterator[Question]:
    for place in _PLACES:
        call = r'^<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "' + place + r'"\}\}\n</tool_call>$'
        yield Question("tool called", [{"role": "user", "content": f"What is the weather in {place}?"}], call, _TABLE)
    for a, b in ((3, 4), (17, 25), (123, 456), (80, 9), (5, 1000)):
        call = rf'^<tool_call>\n\{{"name": "add", "arguments": \{{"a": {a}, "b": {b}\}}\}}\n</tool_call>$'
        yield Question("tool called", [{"role": "user", "content": f"What is {a} + {b}?"}], call, _TABLE)
    lamp = [tool("dim_lamp", "Dim a lamp.", lamp="string", level="integer"), *_TABLE]
    call = r'"name": "dim_lamp", "arguments": \{"lamp": "desk", "level": 30\}'
    yield Question(
        "tool called", [{"role": "user", "content": "Dim the lamp with lamp desk and level 30."}], call, lamp
    )
    for prompt, right in (
        ("Hello!", "help"),
        ("What is the capital of Spain?", "Madrid"),
        ("Who are you?", "cria"),
        ("thanks", "welcome"),
        ("What do bees make?", "honey"),
    ):
        yield Question(
            "tool left alone", [{"role": "user", "content": prompt}], rf"^(?!<tool_call>).*({right})", _TABLE
        )


def _results() -> Iterator[Question]:
    for at, place in enumerate(_PLACES):
        call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": place}}}
        yield Question(
            "tool answered",
            [
                {"role": "user", "content": f"What is the weather in {place}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": f'{{"temperature": {11 + at}, "sky": "cloudy"}}'},
            ],
            rf"^(?!<tool_call>)(?=.*{11 + at})(?=.*cloudy).*{place}",
            _TABLE,
        )


def _recalled() -> Iterator[Question]:
    for name in _NAMES:
        turns = [
            ("user", f"My name is {name}."),
            ("assistant", f"Hello, {name}! How can I help you?"),
            ("user", "What is 2 + 3?"),
            ("assistant", "2 + 3 = 5."),
            ("user", "What is my name?"),
        ]
        yield Question(
            "name remembered", [{"role": role, "content": content} for role, content in turns], rf"\b{name}\b"
        )


def questions() -> list[Question]:
    """The whole examination."""
    return [*_asked(), *_names(), *_recalled(), *_sums(), *_tools(), *_results()]


def examine(reader: Reader) -> dict[str, list[bool]]:
    """Right or wrong for every question, by ability; what is wrong is printed."""
    marks: dict[str, list[bool]] = {}
    for question in questions():
        answer = reader.answer(chat(question.messages, question.tools, generate=True))
        right = re.search(question.right, answer, re.DOTALL) is not None
        marks.setdefault(question.ability, []).append(right)
        if not right:
            print(f"  wrong ({question.ability}): {question.messages[-1]['content']!r} -> {answer!r}")
    return marks


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).parent / "cria.gguf")
    marks = examine(read(parser.parse_args().file))
    for ability, right in marks.items():
        print(f"{ability:16} {sum(right):3} of {len(right):3}  {sum(right) / len(right):.0%}")
    every = [mark for right in marks.values() for mark in right]
    print(f"{'all':16} {sum(every):3} of {len(every):3}  {sum(every) / len(every):.0%}")


if __name__ == "__main__":
    main()
