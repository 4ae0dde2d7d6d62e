"""Tiny models with random weights and a real tokeniser, written as a GGUF file or as an MLX folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tests import tiny_tokenizer

Floats = npt.NDArray[np.float32]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GGUF_ARCHITECTURE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_SCALINGS: dict[RopeKind, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


@dataclass(frozen=True)
class Tiny:
    """The sizes of a tiny model; every keyword of write_gguf and write_mlx is one of these."""

    arch: str
    vocab: int = 320
    width: int = 64
    layers: int = 2
    ffn: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    eps: float = 1e-5
    context: int = 256
    theta: float = 10000.0
    rope: RopeKind = "default"
    window: int | None = None
    tied: bool = False


def tiny(arch: str, kind: str = "f32", **shape: Any) -> Tiny:
    """Sizes that the rows of `kind` divide into blocks: 256 values for a K-quant."""
    sizes = {"width": 256, "ffn": 512, "head_dim": 64} if _values(kind) == 256 else {}
    return Tiny(arch, **{**sizes, **shape})


def write_gguf(folder: Path, arch: str, *, kind: str = "f32", seed: int = 0, **shape: Any) -> Path:
    """A GGUF file whose matrices are of the format `kind`, as llama.cpp's converter lays it out."""
    made = tiny(arch, kind, **shape)
    path = folder / f"tiny-{arch}-{kind}.gguf"
    writer = gguf.GGUFWriter(path, _GGUF_ARCHITECTURE[arch])
    write_metadata(writer, made)
    tiny_tokenizer.write_gguf_keys(writer, made.vocab)
    rng = np.random.default_rng(seed + 1)
    for name, values in gguf_weights(made, seed).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, _encoded(values, kind, rng), raw_dtype=_type(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mlx(
    folder: Path, arch: str, *, bits: int | None = None, group: int = 64, seed: int = 0, **shape: Any
) -> Path:
    """A folder as on the Hugging Face hub; with `bits` its matrices are quantised by MLX."""
    made = tiny(arch, **({"width": 128, "head_dim": 32} | shape if bits else shape))
    target = folder / f"tiny-{arch}-{f'{bits}bit' if bits else 'f32'}"
    target.mkdir()
    weights = hf_weights(made, seed)
    config = hf_config(made)
    if bits:
        weights = _quantised(weights, bits, group)
        config["quantization"] = {"group_size": group, "bits": bits}
    save_file(weights, target / "model.safetensors", metadata={"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config, indent=2))
    tiny_tokenizer.write_folder(target, made.vocab)
    return target


def hf_config(made: Tiny) -> dict[str, Any]:
    """config.json as transformers 4 wrote it, which is what most published folders have."""
    scaling = None if made.rope == "default" else dict(_SCALINGS[made.rope])
    config: dict[str, Any] = {
        "architectures": [_CLASSES[made.arch]],
        "model_type": made.arch,
        "vocab_size": made.vocab,
        "hidden_size": made.width,
        "intermediate_size": made.ffn,
        "num_hidden_layers": made.layers,
        "num_attention_heads": made.heads,
        "num_key_value_heads": made.kv_heads,
        "head_dim": made.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": made.eps,
        "max_position_embeddings": made.context,
        "rope_theta": made.theta,
        "rope_scaling": scaling,
        "sliding_window": made.window,
        "tie_word_embeddings": made.tied,
        "bos_token_id": tiny_tokenizer.BEGIN,
        "eos_token_id": tiny_tokenizer.END,
        "torch_dtype": "float32",
    }
    if made.arch.startswith("qwen"):
        config |= {
            "use_sliding_window": made.window is not None,
            "max_window_layers": 0 if made.window else made.layers,
        }
    return config


def hf_weights(made: Tiny, seed: int = 0) -> dict[str, Floats]:
    """Random weights by their transformers names; norms and biases far from 1 and 0, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> Floats:
        values: Floats = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
        return values

    def norm(size: int) -> Floats:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(made.vocab, made.width) * np.float32(np.sqrt(made.width))}
    for i in range(made.layers):
        layer = {
            "input_layernorm.weight": norm(made.width),
            "self_attn.q_proj.weight": matrix(made.heads * made.head_dim, made.width) * np.float32(2),
            "self_attn.k_proj.weight": matrix(made.kv_heads * made.head_dim, made.width) * np.float32(2),
            "self_attn.v_proj.weight": matrix(made.kv_heads * made.head_dim, made.width),
            "self_attn.o_proj.weight": matrix(made.width, made.heads * made.head_dim),
            "post_attention_layernorm.weight": norm(made.width),
            "mlp.gate_proj.weight": matrix(made.ffn, made.width),
            "mlp.up_proj.weight": matrix(made.ffn, made.width),
            "mlp.down_proj.weight": matrix(made.width, made.ffn),
        }
        if made.arch == "qwen2":
            for name in ("q", "k", "v"):
                rows = len(layer[f"self_attn.{name}_proj.weight"])
                layer[f"self_attn.{name}_proj.bias"] = rng.standard_normal(rows).astype(np.float32)
        if made.arch == "qwen3":
            layer |= {f"self_attn.{name}_norm.weight": norm(made.head_dim) for name in ("q", "k")}
        weights |= {f"model.layers.{i}.{name}": values for name, values in layer.items()}
    weights["model.norm.weight"] = norm(made.width)
    if not made.tied:
        weights["lm_head.weight"] = matrix(made.vocab, made.width) * np.float32(2)
    return weights


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    stem, _, suffix = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.{suffix}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[inner]}.{suffix}"


def gguf_weights(made: Tiny, seed: int = 0) -> dict[str, Floats]:
    """The same weights by their GGUF names: rows of llama's q and k interleaved, llama3 scaling as rope_freqs."""
    weights = {gguf_name(name): values for name, values in hf_weights(made, seed).items()}
    if _GGUF_ARCHITECTURE[made.arch] == "llama":
        for name, values in weights.items():
            if ".attn_q." in name or ".attn_k." in name:
                weights[name] = interleaved(values, made.head_dim)
    if made.rope == "llama3":
        weights["rope_freqs.weight"] = _llama3_factors(made)
    return weights


def interleaved(rows: Floats, head_dim: int) -> Floats:
    """Row i of the first half of each head, then row i of its second half, and so on."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def halved(rows: Floats, head_dim: int) -> Floats:
    """The inverse of `interleaved`."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _llama3_factors(made: Tiny) -> Floats:
    """What each pair's frequency is divided by, as llama.cpp's converter computes it."""
    scaling = _SCALINGS["llama3"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    factors = []
    for i in range(0, made.head_dim, 2):
        wavelength = 2 * np.pi * made.theta ** (i / made.head_dim)
        smooth = (scaling["original_max_position_embeddings"] / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


def write_metadata(writer: gguf.GGUFWriter, made: Tiny) -> None:
    writer.add_name(f"tiny {made.arch}")
    writer.add_context_length(made.context)
    writer.add_embedding_length(made.width)
    writer.add_block_count(made.layers)
    writer.add_feed_forward_length(made.ffn)
    writer.add_head_count(made.heads)
    writer.add_head_count_kv(made.kv_heads)
    writer.add_key_length(made.head_dim)
    writer.add_value_length(made.head_dim)
    writer.add_rope_dimension_count(made.head_dim)
    writer.add_rope_freq_base(made.theta)
    writer.add_layer_norm_rms_eps(made.eps)
    writer.add_vocab_size(made.vocab)
    if made.window:
        writer.add_sliding_window(made.window)
    if made.rope in ("linear", "yarn"):
        scaling = _SCALINGS[made.rope]
        writer.add_rope_scaling_type(gguf.RopeScalingType(made.rope))
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling.get("original_max_position_embeddings", made.context))


def _type(kind: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[kind.upper()]


def _values(kind: str) -> int:
    """Values in a block."""
    return int(gguf.GGML_QUANT_SIZES[_type(kind)][0])


# Where the f16 scales of a block lie, and how large they are for weights of deviation near 1/16. The gguf package
# encodes no K-quants, so those get random blocks; whatever they decode to is what the model's weights are.
_SCALES: dict[str, dict[int, float]] = {
    "q2_k": {80: 5e-3, 82: 7.5e-3},
    "q3_k": {108: 1.5e-3},
    "q4_k": {0: 2.5e-4, 2: 2e-3},
    "q5_k": {0: 1.2e-4, 2: 2e-3},
    "q6_k": {208: 5e-5},
    "iq4_xs": {0: 5e-5},
    "iq4_nl": {0: 1e-3},
}


def _encoded(values: Floats, kind: str, rng: np.random.Generator) -> npt.NDArray[Any]:
    """The rows of a matrix as the gguf package's writer takes them."""
    if kind not in _SCALES:
        encoded: npt.NDArray[Any] = gguf.quants.quantize(values, _type(kind))
        return encoded
    block, nbytes = gguf.GGML_QUANT_SIZES[_type(kind)]
    rows, cols = values.shape
    blocks = rng.integers(0, 256, (rows, cols // block, nbytes), dtype=np.uint8)
    for offset, scale in _SCALES[kind].items():
        scales = rng.uniform(0.5, 1.5, (rows, cols // block, 1)) * scale
        blocks[..., offset : offset + 2] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _quantised(weights: dict[str, Floats], bits: int, group: int) -> dict[str, npt.NDArray[Any]]:
    """Every matrix as MLX stores it: words, scales and biases."""
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, values in weights.items():
        if values.ndim == 1:
            stored[name] = values
            continue
        stem = name.removesuffix(".weight")
        with mx.stream(mx.cpu):
            words, scales, biases = mx.quantize(mx.array(values), group_size=group, bits=bits)
        stored |= {name: np.array(words), f"{stem}.scales": np.array(scales), f"{stem}.biases": np.array(biases)}
    return stored
