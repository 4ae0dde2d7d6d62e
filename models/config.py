"""What a model file says of its model, checked: the sizes, the attention's shape, the rope and its scaling."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from models.facts import Facts
from models.rope import Rope
from models.rope_scaling import LEAST, MOST_TOKENS, gguf_scaling, json_context, json_rope, json_scaling
from quant.checkpoint import Tensor
from quant.errors import ModelFormatError, UnsupportedModel
from quant.gguf_file import GGUFFile
from quant.mlx_folder import MLXFolder

Window = Literal["never", "always", "switched"]


@dataclass(frozen=True)
class AttentionShape:
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope
    window: int | None  # a token sees this many last tokens, itself included


@dataclass(frozen=True)
class ModelConfig:
    architecture: str  # llama, qwen2 or qwen3, which name both definitions and GGUF's keys
    name: str
    vocab: int
    width: int
    layers: int
    ffn: int
    eps: float
    context: int
    attention: AttentionShape
    tied: bool
    qkv_bias: bool
    head_norms: bool


@dataclass(frozen=True)
class _Family:
    """What an architecture implies without saying it in its file."""

    architecture: str
    qkv_bias: bool = False
    head_norms: bool = False
    interleaved: bool = False  # its GGUF rows of q and k are reordered for interleaved rope
    window: Window = "never"  # when its config.json's sliding_window is meant


_LLAMA = _Family("llama", interleaved=True)
_MISTRAL = _Family("llama", interleaved=True, window="always")
_QWEN2 = _Family("qwen2", qkv_bias=True, window="switched")
_QWEN3 = _Family("qwen3", head_norms=True, window="switched")

_GGUF = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _QWEN2, "qwen3": _QWEN3}
_JSON = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    # A folder without `architectures` gives its model_type.
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
}

# Keys that would change the numbers, with the value at which they do not. Others of that kind have no file known to us.
_GGUF_NEUTRAL: Mapping[str, object] = {
    "attention.causal": True,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.key_length_mla": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "use_parallel_residual": False,
}
_JSON_NEUTRAL: Mapping[str, object] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "num_local_experts": 0,
    "num_experts": 0,
    "partial_rotary_factor": 1.0,
}


def config_of(checkpoint: GGUFFile | MLXFolder) -> ModelConfig:
    """The model's shape, every quantity within bounds and consistent with the others."""
    match checkpoint:
        case GGUFFile():
            config = _of_gguf(checkpoint)
        case MLXFolder():
            config = _of_folder(checkpoint)
    _check(checkpoint, config)
    return config


def _check(checkpoint: GGUFFile | MLXFolder, config: ModelConfig) -> None:
    shape = config.attention
    if shape.heads % shape.kv_heads:
        raise ModelFormatError(checkpoint.path, f"{shape.heads} heads do not divide by {shape.kv_heads} KV heads")
    if shape.rope.dims % 2 or shape.rope.dims > shape.head_dim:
        raise ModelFormatError(
            checkpoint.path, f"rope over {shape.rope.dims} values of heads of {shape.head_dim}: not even, or too many"
        )
    if shape.rope.factors and len(shape.rope.factors) != shape.rope.dims // 2:
        raise ModelFormatError(
            checkpoint.path, f"rope_freqs has {len(shape.rope.factors)} values for {shape.rope.dims // 2} pairs"
        )


def _of_gguf(file: GGUFFile) -> ModelConfig:
    architecture = file.metadata.text("general.architecture")
    family = _GGUF.get(architecture)
    if family is None:
        raise UnsupportedModel(file.path, f"architecture {architecture!r} is not supported; {_those(_GGUF)} are")
    facts = Facts(file.path, file.metadata)
    facts.refuse({f"{architecture}.{key}": value for key, value in _GGUF_NEUTRAL.items()})

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    width = facts.count(key("embedding_length"), most=2**20)
    return ModelConfig(
        architecture=family.architecture,
        name=facts.text("general.name", file.path.stem),
        vocab=_gguf_vocab(file, facts, key("vocab_size")),
        width=width,
        layers=facts.count(key("block_count"), most=1024),
        ffn=facts.count(key("feed_forward_length")),
        eps=facts.real(key("attention.layer_norm_rms_epsilon"), most=1.0),
        context=facts.count(key("context_length"), most=MOST_TOKENS),
        attention=_gguf_attention(file, facts, architecture, family, width),
        tied="output.weight" not in file.tensors,
        qkv_bias=family.qkv_bias,
        head_norms=family.head_norms,
    )


def _gguf_vocab(file: GGUFFile, facts: Facts, key: str) -> int:
    table = _tensor(file, "token_embd.weight")
    if len(table.shape) != 2:
        raise ModelFormatError(file.path, f"token_embd.weight has shape {table.shape}, which is no matrix")
    stated = facts.count(key, table.shape[0])
    if stated != table.shape[0]:
        raise ModelFormatError(file.path, f"{key} is {stated}, and token_embd.weight has {table.shape[0]} rows")
    return stated


def _tensor(file: GGUFFile, name: str) -> Tensor:
    if name not in file.tensors:
        raise ModelFormatError(file.path, f"tensor {name} is missing")
    return file.tensors[name]


def _gguf_attention(file: GGUFFile, facts: Facts, architecture: str, family: _Family, width: int) -> AttentionShape:
    def key(name: str) -> str:
        return f"{architecture}.{name}"

    heads = facts.count(key("attention.head_count"), most=4096)
    head_dim = _head_dim(facts, key("attention.key_length"), width, heads)
    if facts.count(key("attention.value_length"), head_dim, most=4096) != head_dim:
        raise UnsupportedModel(file.path, "keys and values of different lengths are not supported")
    return AttentionShape(
        heads=heads,
        kv_heads=facts.count(key("attention.head_count_kv"), heads, most=4096),
        head_dim=head_dim,
        scale=facts.real(key("attention.scale"), 1 / sqrt(head_dim)),
        rope=Rope(
            theta=facts.real(key("rope.freq_base"), 10000.0, least=1.0),
            dims=facts.count(key("rope.dimension_count"), head_dim, most=4096),
            interleaved=family.interleaved,
            scaling=gguf_scaling(facts, architecture),
            factors=_gguf_factors(file),
        ),
        window=facts.count(key("attention.sliding_window"), most=MOST_TOKENS)
        if facts.has(key("attention.sliding_window"))
        else None,
    )


def _gguf_factors(file: GGUFFile) -> tuple[float, ...]:
    if "rope_freqs.weight" not in file.tensors:
        return ()
    tensor = file.tensors["rope_freqs.weight"]
    if len(tensor.shape) != 1 or tensor.shape[0] > 4096:
        raise ModelFormatError(file.path, f"rope_freqs.weight has shape {tensor.shape}")
    values = tensor.values()
    if not ((values > LEAST) & np.isfinite(values)).all():  # 1e30 stands for "never turns" in some files
        raise ModelFormatError(file.path, f"rope_freqs.weight has values that are not above {LEAST:g} and finite")
    return tuple(float(v) for v in values)


def _of_folder(folder: MLXFolder) -> ModelConfig:
    facts = Facts(folder.path / "config.json", folder.config)
    family = _json_family(facts)
    facts.refuse(_JSON_NEUTRAL)
    if facts.inner("quantization_config").has("quant_method"):
        method = facts.inner("quantization_config").text("quant_method")
        raise UnsupportedModel(facts.path, f"weights quantised by {method!r} are not supported")
    layers = facts.count("num_hidden_layers", most=1024)
    return ModelConfig(
        architecture=family.architecture,
        name=folder.path.resolve().name,
        vocab=facts.count("vocab_size"),
        width=facts.count("hidden_size", most=2**20),
        layers=layers,
        ffn=facts.count("intermediate_size"),
        eps=facts.real("rms_norm_eps", 1e-6, most=1.0),
        context=json_context(facts),
        attention=_json_attention(facts, family, layers),
        tied=facts.flag("tie_word_embeddings", False),
        qkv_bias=family.qkv_bias,
        head_norms=family.head_norms,
    )


def _json_family(facts: Facts) -> _Family:
    listed = facts.values.get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else facts.text("model_type")
    if name not in _JSON:
        raise UnsupportedModel(facts.path, f"architecture {name!r} is not supported; {_those(_JSON)} are")
    return _JSON[name]


def _json_attention(facts: Facts, family: _Family, layers: int) -> AttentionShape:
    heads = facts.count("num_attention_heads", most=4096)
    head_dim = _head_dim(facts, "head_dim", facts.count("hidden_size", most=2**20), heads)
    rope = json_rope(facts)
    return AttentionShape(
        heads=heads,
        kv_heads=facts.count("num_key_value_heads", heads, most=4096),
        head_dim=head_dim,
        scale=1 / sqrt(head_dim),
        rope=Rope(
            theta=rope.real("rope_theta", facts.real("rope_theta", 10000.0, least=1.0), least=1.0),
            dims=head_dim,
            interleaved=False,
            scaling=json_scaling(facts),
        ),
        window=_json_window(facts, family, layers),
    )


def _json_window(facts: Facts, family: _Family, layers: int) -> int | None:
    if family.window == "never" or (family.window == "switched" and not facts.flag("use_sliding_window", False)):
        return None
    if not facts.has("sliding_window"):
        return None
    window = facts.count("sliding_window", most=MOST_TOKENS)
    if family.window == "always":
        return window
    full = [kind == "full_attention" for kind in _json_layers(facts, layers)]
    if any(full) and not all(full):
        raise UnsupportedModel(facts.path, "a sliding window on some of the layers is not supported")
    return None if all(full) else window


def _json_layers(facts: Facts, layers: int) -> list[object]:
    """The kind of attention of each layer, as Qwen's config.json has it in its two spellings."""
    listed = facts.values.get("layer_types")
    if isinstance(listed, list):
        return listed
    full = facts.values.get("max_window_layers", 28)
    if isinstance(full, bool) or not isinstance(full, int):
        raise ModelFormatError(facts.path, f"max_window_layers is not a whole number: {full!r}")
    return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]


def _head_dim(facts: Facts, key: str, width: int, heads: int) -> int:
    if not facts.has(key) and width % heads:
        raise ModelFormatError(facts.path, f"{key} is missing, and a width of {width} does not divide by {heads} heads")
    return facts.count(key, width // heads, most=4096)


def _those(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
