"""A path opens as what it holds."""

from pathlib import Path

import mlx.core as mx
import pytest

from quant.checkpoint import Checkpoint
from quant.errors import ModelFileError, ModelFormatError
from quant.gguf_file import GGUFFile
from quant.mlx_folder import MLXFolder
from quant.open import open_checkpoint
from tests.quant.files import write_config, write_gguf, write_small_gguf


def opened(path: Path) -> Checkpoint:
    """Whatever it is, it is a checkpoint: mypy checks this line."""
    return open_checkpoint(path)


def test_a_file_is_gguf(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "model.bin")
    with opened(tmp_path / "model.bin") as model:
        assert isinstance(model, GGUFFile)


def test_a_folder_with_a_config_is_mlx(tmp_path: Path) -> None:
    write_config(tmp_path)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"norm.weight": mx.zeros(4)})
    with opened(tmp_path) as model:
        assert isinstance(model, MLXFolder)


def test_a_folder_with_one_gguf_model_opens_it(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "best-of-all.gguf")
    with opened(tmp_path) as model:
        assert model.path == tmp_path / "best-of-all.gguf"


def test_a_folder_with_the_parts_of_one_model_opens_it(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "model.gguf", split_max_tensors=6)
    with opened(tmp_path) as model:
        assert [*model.tensors] == [*data]


def test_a_folder_with_two_models_wants_a_choice(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "a.gguf")
    write_small_gguf(tmp_path / "b.gguf")
    with pytest.raises(ModelFormatError, match=r"holds 2 GGUF models; name one of a\.gguf, b\.gguf"):
        opened(tmp_path)


def test_a_folder_with_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"holds neither config\.json nor a GGUF file"):
        opened(tmp_path)


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be opened"):
        opened(tmp_path / "absent")


def test_a_path_that_the_system_will_not_look_at_is_refused() -> None:
    with pytest.raises(ModelFileError, match="cannot be opened: File name too long"):
        opened(Path("a" * 5000))
