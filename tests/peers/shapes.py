"""Model files of Llama-3.2-1B's shape with random weights, for measurements: speed depends on shapes, not on values.

Usage: python -m tests.peers.shapes FORMAT TARGET
FORMAT is q4_k_m, q5_k_m, q4_0, q6_k or q8_0, which give a GGUF file, or mlx-4bit (groups of 64) or mlx-bf16, which give
a folder. Weights have mean 0 and a deviation of about 1 / sqrt(columns).
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tests import tiny_models, tiny_tokenizer
from tests.tiny_models import Tiny, gguf_name

ONE_B = Tiny(
    "llama",
    vocab=128256,
    width=2048,
    layers=16,
    ffn=8192,
    heads=32,
    kv_heads=8,
    head_dim=64,
    context=131072,
    theta=5e5,
    tied=True,
)
GROUP = 64

Bytes = npt.NDArray[np.uint8]

# Where the f16 scales of a block lie, and how large they are for weights of deviation 1 / 45; all else is random.
_SCALES = {
    "q4_0": {0: 4.8e-3},
    "q8_0": {0: 3e-4},
    "q4_k": {0: 9e-5, 2: 6.6e-4},
    "q5_k": {0: 4.5e-5, 2: 7e-4},
    "q6_k": {208: 1.8e-5},
}
GGUF_FORMATS = ("q4_k_m", "q8_0", "q6_k", "q5_k_m", "q4_0")
MLX_FORMATS = ("mlx-4bit", "mlx-bf16")


def write(name: str, target: Path) -> None:
    """The file or folder is there when this returns, and not there in part before."""
    part = target.with_name(target.name + ".part")
    if name in GGUF_FORMATS:
        _write_gguf(name, part)
    else:
        _write_mlx(name, part)
    part.rename(target)


def _matrices(made: Tiny) -> Iterator[tuple[str, int, int]]:
    """Names as on the hub, rows and columns."""
    heads, kv = made.heads * made.head_dim, made.kv_heads * made.head_dim
    yield "model.embed_tokens.weight", made.vocab, made.width
    for i in range(made.layers):
        for name, rows, cols in (
            ("self_attn.q_proj", heads, made.width),
            ("self_attn.k_proj", kv, made.width),
            ("self_attn.v_proj", kv, made.width),
            ("self_attn.o_proj", made.width, heads),
            ("mlp.gate_proj", made.ffn, made.width),
            ("mlp.up_proj", made.ffn, made.width),
            ("mlp.down_proj", made.width, made.ffn),
        ):
            yield f"model.layers.{i}.{name}.weight", rows, cols


def _norms(made: Tiny) -> Iterator[str]:
    for i in range(made.layers):
        yield f"model.layers.{i}.input_layernorm.weight"
        yield f"model.layers.{i}.post_attention_layernorm.weight"
    yield "model.norm.weight"


def _kind(mix: str, name: str, layers: int) -> str:
    """Of a matrix in a mix: the `_m` mixes keep the embedding and half of the values and down projections in q6_k."""
    if not mix.endswith("_m"):
        return mix
    if name.startswith("token_embd"):
        return "q6_k"
    _, layer, part, _ = name.split(".")
    at, eighth = int(layer), layers // 8
    more = at < eighth or at >= layers - eighth or (at - eighth) % 3 == 2
    return "q6_k" if more and part in ("attn_v", "ffn_down") else mix.removesuffix("_m")


def _write_gguf(mix: str, path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    tiny_models.write_metadata(writer, ONE_B)
    tiny_tokenizer.write_gguf_keys(writer, ONE_B.vocab)
    for name, rows, cols in _matrices(ONE_B):
        kind = gguf.GGMLQuantizationType[_kind(mix, gguf_name(name), ONE_B.layers).upper()]
        writer.add_tensor(gguf_name(name), _blocks(kind, rows, cols, rng), raw_dtype=kind)
    for name in _norms(ONE_B):
        writer.add_tensor(gguf_name(name), np.ones(ONE_B.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: gguf.GGMLQuantizationType, rows: int, cols: int, rng: np.random.Generator) -> Bytes:
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(bytearray(rng.bytes(rows * cols // values * nbytes)), np.uint8).reshape(rows, -1, nbytes)
    for offset, scale in _SCALES[kind.name.lower()].items():
        blocks[..., offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _write_mlx(name: str, folder: Path) -> None:
    folder.mkdir()
    config = tiny_models.hf_config(ONE_B) | {"torch_dtype": "bfloat16"}
    weights = {norm: mx.ones(ONE_B.width, mx.bfloat16) for norm in _norms(ONE_B)}
    make: Callable[[str, int, int], dict[str, mx.array]] = _bf16
    if name == "mlx-4bit":
        config["quantization"] = {"group_size": GROUP, "bits": 4}
        make = _affine
    for matrix in _matrices(ONE_B):
        weights |= make(*matrix)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tiny_tokenizer.write_folder(folder, ONE_B.vocab)


def _bf16(name: str, rows: int, cols: int) -> dict[str, mx.array]:
    rng = np.random.default_rng(len(name))
    values = (rng.standard_normal((rows, cols), np.float32) / np.float32(np.sqrt(cols))).view(np.uint32) >> 16
    return {name: mx.array(values.astype(np.uint16)).view(mx.bfloat16)}


def _affine(name: str, rows: int, cols: int) -> dict[str, mx.array]:
    """Codes 0 to 15, whose deviation is 4.6, about a mean of 0."""
    rng = np.random.default_rng(len(name))
    words = np.frombuffer(rng.bytes(rows * cols // 2), np.uint32).reshape(rows, -1)
    scale = 1 / (4.6 * np.sqrt(cols))
    stem, groups = name.removesuffix(".weight"), (rows, cols // GROUP)
    return {
        name: mx.array(words),
        f"{stem}.scales": mx.full(groups, scale, mx.bfloat16),
        f"{stem}.biases": mx.full(groups, -7.5 * scale, mx.bfloat16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=GGUF_FORMATS + MLX_FORMATS)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    mx.set_default_device(mx.Device(mx.cpu))
    write(asked.format, asked.target)


if __name__ == "__main__":
    main()
