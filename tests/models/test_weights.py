"""Every weight is found and checked before the first is read, and none is passed over in silence."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from models.config import ModelConfig, config_of
from models.llama import Llama
from models.ops import Matrix
from quant.checkpoint import Checkpoint, Tensor
from quant.errors import ModelFormatError, UnsupportedModel
from quant.gguf_file import GGUFFile
from quant.open import open_checkpoint
from tests.tiny_models import write_gguf, write_mlx


class Untouched:
    """A loader that nobody may call."""

    def matrix(self, tensor: Tensor) -> Matrix:
        raise AssertionError(f"{tensor.name} was read before all were checked")

    def vector(self, tensor: Tensor) -> mx.array:
        raise AssertionError(f"{tensor.name} was read before all were checked")


@contextmanager
def opened(path: Path) -> Iterator[tuple[ModelConfig, Checkpoint, dict[str, Tensor]]]:
    """A checkpoint whose tensors may be changed."""
    with open_checkpoint(path) as checkpoint:
        tensors = dict(checkpoint.tensors)
        yield config_of(checkpoint), Altered(checkpoint.path, tensors), tensors


class Altered:
    statement = b""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors

    def close(self) -> None: ...
    def __enter__(self) -> "Altered":
        return self

    def __exit__(self, *fault: object) -> None: ...


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight", "blk.0.attn_v.bias"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    with opened(write_gguf(tmp_path, "qwen2")) as (config, checkpoint, tensors):
        del tensors[name]
        with pytest.raises(ModelFormatError, match=f"{name} is missing"):
            Llama.load(config, checkpoint, Untouched())


def test_a_wrong_shape_is_named_with_both(tmp_path: Path) -> None:
    with opened(write_gguf(tmp_path, "llama")) as (config, checkpoint, tensors):
        tensors["blk.1.attn_k.weight"] = replace(tensors["blk.1.attn_k.weight"], shape=(64, 32))
        with pytest.raises(ModelFormatError, match=r"blk.1.attn_k.weight has shape \(64, 32\).*\(32, 64\)"):
            Llama.load(config, checkpoint, Untouched())


def test_a_bias_that_the_model_has_no_place_for_is_refused(tmp_path: Path) -> None:
    with opened(write_gguf(tmp_path, "llama")) as (config, checkpoint, tensors):
        tensors["blk.0.attn_q.bias"] = tensors["blk.0.attn_norm.weight"]
        with pytest.raises(UnsupportedModel, match=r"blk.0.attn_q.bias"):
            Llama.load(config, checkpoint, Untouched())


def test_layers_beyond_the_stated_number_are_refused(tmp_path: Path) -> None:
    with (
        opened(write_gguf(tmp_path, "llama")) as (config, checkpoint, _),
        pytest.raises(UnsupportedModel, match=r"blk.1.* of 1 layers"),
    ):
        Llama.load(replace(config, layers=1), checkpoint, Untouched())


def test_a_folder_without_an_embedding_is_refused(tmp_path: Path) -> None:
    with opened(write_mlx(tmp_path, "llama")) as (config, checkpoint, tensors):
        del tensors["model.embed_tokens.weight"]
        with pytest.raises(ModelFormatError, match="embed_tokens"):
            Llama.load(config, checkpoint, Untouched())


def test_the_second_head_of_a_tied_folder_is_spare(tmp_path: Path) -> None:
    with opened(write_mlx(tmp_path, "llama", tied=True)) as (config, checkpoint, tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        with pytest.raises(AssertionError, match="before all were checked"):
            Llama.load(config, checkpoint, Untouched())


def test_a_gguf_says_by_its_head_whether_it_is_tied(tmp_path: Path) -> None:
    (tmp_path / "tied").mkdir()
    with open_checkpoint(write_gguf(tmp_path / "tied", "llama", tied=True)) as tied:
        assert isinstance(tied, GGUFFile)
        assert config_of(tied).tied
    with open_checkpoint(write_gguf(tmp_path, "llama")) as untied:
        assert not config_of(untied).tied
