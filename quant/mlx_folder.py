"""Reads a folder as mlx-lm writes it: config.json, and safetensors whose quantised matrices are three planes each."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quant.checkpoint import OpenFile, Tensor
from quant.errors import ModelFormatError, UnsupportedModel
from quant.formats import AFFINE, FORMATS, Affine
from quant.json_file import read_json
from quant.safetensors_file import Stored, stored_tensors

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_CONFIG = 1 << 24


class MLXFolder:
    """An MLX model, quantised or not. Scales and biases are folded into the matrix that they belong to.

    A file of the folder may be a link to elsewhere, as all are in Hugging Face's cache; a name may not lead elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = read_json(path / CONFIG, MAX_CONFIG)
        with ExitStack() as undo:
            stored = _stored(path, undo)
            self.tensors: Mapping[str, Tensor] = _fold(stored, _Quantisation(path / CONFIG, self.config))
            self._files = undo.pop_all()

    @property
    def statement(self) -> bytes:
        return json.dumps(self.config, sort_keys=True).encode()

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _stored(path: Path, undo: ExitStack) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    places = _places(path)
    for name in _shards(path, places):
        file = OpenFile(path / name)
        undo.callback(file.close)
        for key, tensor in stored_tensors(file).items():
            if key in tensors:
                raise ModelFormatError(file.path, f"tensor {key!r} occurs twice")
            tensors[key] = tensor
    for key, name in places.items():
        if key not in tensors or tensors[key].plane.file.path.name != name:
            raise ModelFormatError(path / INDEX, f"tensor {key!r} is not in {name!r}")
    return tensors


def _places(path: Path) -> dict[str, str]:
    """The file of each tensor, as the index says it; nothing where there is no index."""
    if not (path / INDEX).exists():
        return {}
    places = read_json(path / INDEX, MAX_CONFIG).get("weight_map")
    if type(places) is not dict or not places:
        raise ModelFormatError(path / INDEX, "no weight_map")
    for name in places.values():
        # A plain name in this folder; a separator of either kind, or a leading dot, would lead elsewhere.
        if type(name) is not str or not name.endswith(".safetensors") or name[0] == "." or set(name) & set("/\\\0"):
            raise ModelFormatError(path / INDEX, f"weight_map names {name!r}, which is not a file of this folder")
    return places


def _shards(path: Path, places: dict[str, str]) -> list[str]:
    if places:
        return sorted(set(places.values()))
    if (path / SINGLE).exists():
        return [SINGLE]
    raise ModelFormatError(path, f"holds neither {SINGLE} nor {INDEX}")


def _fold(stored: dict[str, Stored], quantisation: "_Quantisation") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part in ("scales", "biases") and f"{module}.weight" in stored:
            continue
        scales, biases = stored.get(f"{module}.scales"), stored.get(f"{module}.biases")
        if part == "weight" and (scales or biases or tensor.plane.dtype == "u32"):
            if not scales or not biases:
                raise ModelFormatError(tensor.plane.file.path, f"tensor {name!r} lacks its scales or its biases")
            tensors[name] = _affine(name, tensor, scales, biases, quantisation.of(module))
        elif tensor.plane.dtype in FORMATS:
            tensors[name] = Tensor(name, tensor.shape, FORMATS[tensor.plane.dtype], (tensor.plane,))
        else:
            raise ModelFormatError(tensor.plane.file.path, f"tensor {name!r} holds words that are no weight")
    return tensors


def _affine(name: str, words: Stored, scales: Stored, biases: Stored, row: Affine) -> Tensor:
    """The three planes as one matrix, when their shapes and dtypes say the same."""
    planes = words.plane, scales.plane, biases.plane
    *lead, width = words.shape or (0,)
    cols = width * 32 // row.bits
    groups = (*lead, cols // row.group)
    fits = lead and cols * row.bits == width * 32 and cols % row.group == 0
    if not fits or scales.shape != groups or biases.shape != groups:
        raise ModelFormatError(
            words.plane.file.path,
            f"tensor {name!r} of shape {words.shape} with scales {scales.shape} and biases {biases.shape} "
            f"is not {row.bits} bits in groups of {row.group}",
        )
    dtypes = tuple(plane.dtype for plane in planes)
    if dtypes[0] != "u32" or dtypes[1] not in FORMATS or dtypes[1] != dtypes[2]:
        raise ModelFormatError(words.plane.file.path, f"tensor {name!r} is made of {dtypes}")
    return Tensor(name, (*lead, cols), row, planes)


class _Quantisation:
    """What config.json says of each module's bits; a module may differ from the rest."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self._rules = config.get("quantization")
        if self._rules is None:
            self._rules = config.get("quantization_config")

    def of(self, module: str) -> Affine:
        if type(self._rules) is not dict:
            raise ModelFormatError(self.path, f"says nothing of quantisation, yet {module!r} is quantised")
        rule = self._rules.get(module, self._rules)
        if type(rule) is not dict:
            raise ModelFormatError(self.path, f"says that {module!r} is not quantised, and it is")
        mode = rule.get("mode", "affine")
        if mode != "affine":
            raise UnsupportedModel(self.path, f"{module!r} is quantised in mode {mode!r}; affine is read")
        name = f"affine{rule.get('bits')}_{rule.get('group_size')}"
        if name not in AFFINE:
            raise UnsupportedModel(
                self.path,
                f"{module!r} has {rule.get('bits')!r} bits in groups of {rule.get('group_size')!r}; read are "
                "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
            )
        return AFFINE[name]
