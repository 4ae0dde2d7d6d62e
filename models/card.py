"""Card: what the server knows of a model: its shape, its tokenizer and its chat template, without its weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from models.config import ModelConfig, config_of
from models.template import ChatTemplate
from models.tokenizer import Tokenizer
from models.tokenizer_gguf import gguf_tokenizer
from models.tokenizer_json import TOKENIZER_CONFIG, folder_tokenizer, optional_json
from quant.checkpoint import OpenFile
from quant.errors import ModelFormatError
from quant.gguf_file import GGUFFile
from quant.mlx_folder import MLXFolder
from quant.open import open_checkpoint

_GGUF_TEMPLATE = "tokenizer.chat_template"
_WITH_TOOLS = "tool_use"  # the name of the template for requests that bring tools
_MAX_TEMPLATE = 1 << 20


@dataclass(frozen=True)
class Card:
    """Owns the template's process. The model file is closed; the engine opens it for itself."""

    path: Path
    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None  # a model without one continues texts and does not converse

    def close(self) -> None:
        if self.template is not None:
            self.template.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()


def open_card(path: Path) -> Card:
    with open_checkpoint(path) as checkpoint:
        config, tokenizer = config_of(checkpoint), tokenizer_of(checkpoint)
        if tokenizer.size > config.vocab:
            raise ModelFormatError(path, f"{tokenizer.size} tokens, and weights for {config.vocab} of them")
        return Card(path, config.name, config, tokenizer, _template(checkpoint, tokenizer))


def tokenizer_of(checkpoint: GGUFFile | MLXFolder) -> Tokenizer:
    match checkpoint:
        case GGUFFile():
            return gguf_tokenizer(checkpoint)
        case MLXFolder():
            return folder_tokenizer(checkpoint)


def _template(checkpoint: GGUFFile | MLXFolder, tokenizer: Tokenizer) -> ChatTemplate | None:
    match checkpoint:
        case GGUFFile():
            sources = _gguf_sources(checkpoint)
        case MLXFolder():
            sources = _folder_sources(checkpoint)
    if "default" not in sources:
        return None
    bos, eos = tokenizer.spelling(tokenizer.bos), tokenizer.spelling(tokenizer.eos)
    return ChatTemplate(sources["default"], bos, eos, with_tools=sources.get(_WITH_TOOLS))


def _gguf_sources(file: GGUFFile) -> dict[str, str]:
    keys = {"default": _GGUF_TEMPLATE, _WITH_TOOLS: f"{_GGUF_TEMPLATE}.{_WITH_TOOLS}"}
    return {name: file.metadata.text(key) for name, key in keys.items() if key in file.metadata}


def _folder_sources(folder: MLXFolder) -> dict[str, str]:
    """A file of its own, else what tokenizer_config.json holds: one template, or a list of them with names."""
    alone = folder.path / "chat_template.jinja"
    if alone.exists():
        return {"default": _read_text(alone)}
    held = optional_json(folder, TOKENIZER_CONFIG).get("chat_template")
    named = {"default": held} if type(held) is not list else dict(_named_templates(folder, held))
    for source in named.values():
        if source is not None and type(source) is not str:
            raise ModelFormatError(folder.path / TOKENIZER_CONFIG, "chat_template holds something that is not a text")
    return {name: source for name, source in named.items() if source}


def _named_templates(folder: MLXFolder, held: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for entry in held:
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise ModelFormatError(folder.path / TOKENIZER_CONFIG, "chat_template is a list without names")
        yield entry["name"], entry.get("template")


def _read_text(path: Path) -> str:
    file = OpenFile(path)
    try:
        if file.size > _MAX_TEMPLATE:
            raise ModelFormatError(path, f"{file.size} bytes; at most {_MAX_TEMPLATE} are read")
        return file.read(0, file.size).tobytes().decode()
    except UnicodeDecodeError as fault:
        raise ModelFormatError(path, "not UTF-8") from fault
    finally:
        file.close()
