"""The corpus of cria: repeatable, well formed, true in its sums, and faithful to the tools it was given."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import pytest

from models.cria.conversation import Conversation, Document, Message, Prose
from models.cria.corpus import documents
from models.cria.render import END, TEMPLATE, chat, text
from models.cria.sums import result

SHIPPED = Path("models/cria/cria.gguf")
SEED = 11
COUNT = 3_000  # documents: enough that every generator has spoken many times
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(islice(documents(SEED), COUNT))


def conversations(corpus: list[Document]) -> Iterator[Conversation]:
    return (document for document in corpus if isinstance(document, Conversation))


def calls_of(message: Message) -> list[dict[str, Any]]:
    return [call["function"] for call in message.get("tool_calls", [])]


def test_the_same_seed_gives_the_same_text(corpus: list[Document]) -> None:
    again = islice(documents(SEED), COUNT)
    assert [text(document) for document in corpus] == [text(document) for document in again]


def test_another_seed_gives_another_text(corpus: list[Document]) -> None:
    assert [text(document) for document in corpus] != [text(d) for d in islice(documents(SEED + 1), COUNT)]


def test_every_document_is_rendered_whole(corpus: list[Document]) -> None:
    for document in corpus:
        rendered = text(document)
        assert rendered.endswith(END)
        if isinstance(document, Conversation):
            contents = [message["content"] for message in document.messages if message["content"]]
            assert all(content.strip() in rendered for content in contents)
            assert rendered.count(END) == rendered.count("<|") - rendered.count(END)  # each turn opens and ends once
        else:
            assert rendered == document.text + END


def test_turns_alternate_and_the_assistant_has_the_last_word(corpus: list[Document]) -> None:
    turn = "(user assistant |user calls (tool )+assistant )"
    for conversation in conversations(corpus):
        roles = ["calls" if calls_of(message) else message["role"] for message in conversation.messages]
        assert re.fullmatch(f"(system )?{turn}+", " ".join(roles) + " "), roles


def test_no_choice_is_left_open_and_no_blank_unfilled(corpus: list[Document]) -> None:
    left = re.compile(r"\[[^\]\n]*\|[^\]\n]*\]|\{(?!id\})[A-Za-z_]\w*\}")
    for document in corpus:
        assert left.search(text(document)) is None, text(document)


def value(side: str) -> int:
    """What one side of a sum comes to, read from left to right."""
    first, *rest = side.split(" ")
    total = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total = result(total, sign, int(number))
    return total


def spoken(document: Document) -> Iterator[str]:
    """What the model itself would say."""
    if isinstance(document, Prose):
        yield document.text
    else:
        yield from (m["content"] for m in document.messages if m["role"] == "assistant" and m["content"])


def test_sums_are_right(corpus: list[Document]) -> None:
    side = r"\d+(?: [-+*/] \d+)*"
    equation = re.compile(rf"(?<!\S)(?<![-+*/] ){side}(?: = {side})*(?: = -?\d+)\.")
    found = [one for document in corpus for said in spoken(document) for one in equation.findall(said)]
    assert len(found) > COUNT / 4
    for one in found:
        assert len({value(part) for part in one.rstrip(".").split(" = ")}) == 1, one


def test_tool_calls_name_a_given_tool_and_its_parameters(corpus: list[Document]) -> None:
    seen = 0
    for conversation in conversations(corpus):
        given = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in conversation.tools}
        for call in (call for message in conversation.messages for call in calls_of(message)):
            assert set(json.loads(call["arguments"])) <= set(given[call["name"]])
            seen += 1
    assert seen > COUNT / 20


def test_tool_arguments_stand_in_the_question(corpus: list[Document]) -> None:
    for conversation in conversations(corpus):
        for before, message in zip(conversation.messages, conversation.messages[1:], strict=False):
            for call in calls_of(message):
                for value in json.loads(call["arguments"]).values():
                    assert str(value) in before["content"], (before, call)


def test_tool_calls_are_rendered_as_the_server_parses_them(corpus: list[Document]) -> None:
    for conversation in conversations(corpus):
        wanted = [call for message in conversation.messages for call in calls_of(message)]
        written = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text(conversation))
        assert [json.loads(one)["name"] for one in written] == [call["name"] for call in wanted]
        assert [json.loads(one)["arguments"] for one in written] == [json.loads(call["arguments"]) for call in wanted]


def test_prose_has_no_turns(corpus: list[Document]) -> None:
    assert not any("<|" in document.text for document in corpus if isinstance(document, Prose))


def test_arguments_render_alike_as_text_and_as_an_object() -> None:
    def asking(arguments: str | dict[str, str]) -> Message:
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        }

    assert chat([asking({"city": "Lima"})]) == chat([asking('{"city": "Lima"}')])


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you."}]
    assert chat([{"role": "user", "content": parts}]) == "<|user|>Hello, you.<|end|>"


def test_developer_means_system() -> None:
    system, developer = ({"role": role, "content": "Be kind."} for role in ("system", "developer"))
    assert chat([system], [TOOL]) == chat([developer], [TOOL])


def test_tools_stand_in_the_first_system_turn() -> None:
    user = {"role": "user", "content": "Hi"}
    line = (
        'Tools:\n{"name": "get_weather", "description": "Get the weather.", '
        '"parameters": {"city": "string", "days": "integer"}}<|end|>'
    )
    assert chat([user], [TOOL]) == f"<|system|>{line}<|user|>Hi<|end|>"
    systems = [{"role": "system", "content": content} for content in ("One.", "Two.")]
    assert chat([*systems, user], [TOOL]) == f"<|system|>One.\n{line}<|system|>Two.<|end|><|user|>Hi<|end|>"


def test_the_prompt_ends_where_the_assistant_speaks() -> None:
    assert chat([{"role": "user", "content": "Hi"}], generate=True) == "<|user|>Hi<|end|><|assistant|>"


def test_tools_without_parameters_render() -> None:
    bare = {"type": "function", "function": {"name": "ping"}}
    assert chat([], [bare]) == '<|system|>Tools:\n{"name": "ping", "description": "", "parameters": {}}<|end|>'


def test_the_shipped_file_is_small_and_carries_the_template() -> None:
    assert SHIPPED.stat().st_size <= 16 * 2**20
    fields = gguf.GGUFReader(SHIPPED).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["general.architecture"].contents() == "llama"
