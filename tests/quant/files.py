"""Makes small model files by outside writers: the gguf package, and MLX's safetensors."""

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, Format

SCALARS: dict[str, tuple[Any, gguf.GGUFValueType]] = {
    "u8": (255, gguf.GGUFValueType.UINT8),
    "i8": (-128, gguf.GGUFValueType.INT8),
    "u16": (65535, gguf.GGUFValueType.UINT16),
    "i16": (-32768, gguf.GGUFValueType.INT16),
    "u32": (4294967295, gguf.GGUFValueType.UINT32),
    "i32": (-2147483648, gguf.GGUFValueType.INT32),
    "u64": (18446744073709551615, gguf.GGUFValueType.UINT64),
    "i64": (-9223372036854775808, gguf.GGUFValueType.INT64),
    "f32": (0.5, gguf.GGUFValueType.FLOAT32),
    "f64": (1e-300, gguf.GGUFValueType.FLOAT64),
    "yes": (True, gguf.GGUFValueType.BOOL),
    "no": (False, gguf.GGUFValueType.BOOL),
    "text": ("grüß 🦙", gguf.GGUFValueType.STRING),
}
ARRAYS: dict[str, list[Any]] = {
    "ints": [-3, 0, 7],
    "floats": [0.5, -2.0],
    "flags": [True, False],
    "words": ["", "a", "\u2581lama", "🦙"],
}


def blocks(row: Format, rows: int, cols: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(row.gguf)
    return rng.integers(0, 256, (rows, cols // row.values * row.bytes), np.uint8)


def write_gguf(path: Path, **writer_options: Any) -> dict[str, NDArray[np.uint8]]:
    """A file with a value of every type and a tensor of every format; its tensors' bytes."""
    writer = gguf.GGUFWriter(path, "llama", **writer_options)
    for key, (value, kind) in SCALARS.items():
        writer.add_key_value(key, value, kind)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    data = {}
    for row in FORMATS.values():
        data[row.name] = blocks(row, 3, 512)
        writer.add_tensor(row.name, data[row.name], raw_dtype=gguf.GGMLQuantizationType(row.gguf))
    finish(writer)
    return data


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_small_gguf(path: Path, alignment: int | None = None) -> None:
    """The least file with a bit of everything: the ground of mutations."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_bool("flag", True)
    writer.add_array("words", ["a", "bc"])
    writer.add_array("ints", [1, 2, 3])
    writer.add_tensor("norm", np.arange(8, dtype=np.float32))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("matrix", blocks(FORMATS["q8_0"], 2, 32), raw_dtype=q8_0)
    finish(writer)


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))


def quantised(name: str, weight: mx.array, group: int, bits: int) -> dict[str, mx.array]:
    """The three planes of a matrix under the names that mlx-lm gives them."""
    words, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
    return {f"{name}.weight": words, f"{name}.scales": scales, f"{name}.biases": biases}
