"""Cards: what a model file or folder says about text, and which of its templates is the one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.card import open_card
from quant.errors import ModelFormatError
from tests import tiny_tokenizer
from tests.models.vocabularies import byte_level
from tests.tiny_models import write_gguf, write_mlx

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("write", [write_gguf, write_mlx])
def test_a_card_reads_a_models_shape_tokenizer_and_template(tmp_path: Path, write: Callable[..., Path]) -> None:
    with open_card(write(tmp_path, "llama")) as card:
        assert card.name
        assert card.config.architecture == "llama"
        assert card.tokenizer.eos == tiny_tokenizer.END
        assert card.template is not None
        prompt = card.template.render(HI)
        assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        ids = card.tokenizer.encode(prompt, special=True)
        assert ids.count(tiny_tokenizer.TURN) == 2
        assert max(ids) < card.config.vocab


def folder(tmp_path: Path, **settings: Any) -> Path:
    """A tiny folder with these settings in its tokenizer_config.json."""
    path = write_mlx(tmp_path, "qwen3")
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return path


def test_a_folder_may_name_several_templates(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    with open_card(folder(tmp_path, chat_template=templates)) as card:
        assert card.template is not None
        assert card.template.render(HI) == "plain"
        assert card.template.render(HI, [{"type": "function"}]) == "with tools"


def test_a_template_file_comes_before_the_settings(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "chat_template.jinja").write_text("from the file {{ eos_token }}")
    with open_card(path) as card:
        assert card.template is not None
        assert card.template.render(HI) == "from the file <|im_end|>"


@pytest.mark.parametrize("held", [None, "", []])
def test_a_model_without_a_template_has_none(tmp_path: Path, held: object) -> None:
    with open_card(folder(tmp_path, chat_template=held)) as card:
        assert card.template is None


@pytest.mark.parametrize("held", [7, [7], [{"name": "default", "template": 7}], [{"template": "x"}]])
def test_a_template_that_is_no_text_is_refused(tmp_path: Path, held: object) -> None:
    with pytest.raises(ModelFormatError, match="chat_template"):
        open_card(folder(tmp_path, chat_template=held))


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"a" * (1 << 20) + b"a"])
def test_a_template_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = folder(tmp_path)
    (path / "chat_template.jinja").write_bytes(raw)
    with pytest.raises(ModelFormatError, match=r"chat_template\.jinja"):
        open_card(path)


def test_more_tokens_than_the_model_has_weights_for_are_refused(tmp_path: Path) -> None:
    path = write_mlx(tmp_path, "llama")
    file = path / "tokenizer.json"
    written = json.loads(file.read_text())
    written["added_tokens"].append(written["added_tokens"][-1] | {"id": 5000, "content": "<|far|>"})
    written["model"]["vocab"]["<|far|>"] = 5000
    file.write_text(json.dumps(written))
    with pytest.raises(ModelFormatError, match="5001 tokens"):
        open_card(path)


def test_a_gguf_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError):
        open_card(byte_level().write(tmp_path))
