"""A conversation is what the corpus is made of: messages, and the tools that were on the table."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages in OpenAI form: an optional system turn, then users and assistants in turn, the assistant last."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


@dataclass(frozen=True)
class Prose:
    """Plain text without turns, so that a bare completion is English as well."""

    text: str


Document = Conversation | Prose


@dataclass(frozen=True)
class Persona:
    """Who the assistant is in this conversation, and the system prompt that says so."""

    name: str = "cria"
    role: str = ""
    system: str = ""


def exchange(question: str, answer: str) -> list[Message]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
