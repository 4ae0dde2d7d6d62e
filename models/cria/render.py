"""Rendering: a document as the one string that the model reads, through the template that ships in its GGUF."""

import json
from pathlib import Path

import jinja2

from models.cria.conversation import Document, Message, Prose, Tool

END = "<|end|>"
TEMPLATE = (Path(__file__).parent / "template.jinja").read_text()


def _compiled() -> jinja2.Template:
    """The template with the `tojson` of the Hugging Face convention: no HTML escapes, keys as they stand."""
    house = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    house.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return house.from_string(TEMPLATE)


_TEMPLATE = _compiled()


def chat(messages: list[Message], tools: list[Tool] | None = None, generate: bool = False) -> str:
    """The prompt of a conversation; with `generate` it ends where the assistant is to speak."""
    return _TEMPLATE.render(messages=messages, tools=tools or None, add_generation_prompt=generate)


def text(document: Document) -> str:
    """A whole document, ended by the end token."""
    if isinstance(document, Prose):
        return document.text + END
    return chat(document.messages, document.tools)
