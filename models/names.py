"""The places that a Llama-like model has for weights: how each is called in GGUF and on the hub, and its sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.config import ModelConfig

Side = Literal["vocab", "width", "ffn", "q", "kv", "head"]
When = Literal["always", "untied", "qkv_bias", "head_norms"]


@dataclass(frozen=True)
class Slot:
    name: str
    gguf: str  # {} is the number of the layer
    hub: str
    sides: tuple[Side, ...]
    when: When = "always"


OF_MODEL = (
    Slot("embedding", "token_embd.weight", "model.embed_tokens.weight", ("vocab", "width")),
    Slot("norm", "output_norm.weight", "model.norm.weight", ("width",)),
    Slot("head", "output.weight", "lm_head.weight", ("vocab", "width"), "untied"),
)


def _of_layer(name: str, gguf: str, hub: str, sides: tuple[Side, ...], when: When = "always") -> Slot:
    return Slot(name, f"blk.{{}}.{gguf}", f"model.layers.{{}}.{hub}", sides, when)


OF_LAYER = (
    _of_layer("attn_norm", "attn_norm.weight", "input_layernorm.weight", ("width",)),
    _of_layer("q", "attn_q.weight", "self_attn.q_proj.weight", ("q", "width")),
    _of_layer("k", "attn_k.weight", "self_attn.k_proj.weight", ("kv", "width")),
    _of_layer("v", "attn_v.weight", "self_attn.v_proj.weight", ("kv", "width")),
    _of_layer("q_bias", "attn_q.bias", "self_attn.q_proj.bias", ("q",), "qkv_bias"),
    _of_layer("k_bias", "attn_k.bias", "self_attn.k_proj.bias", ("kv",), "qkv_bias"),
    _of_layer("v_bias", "attn_v.bias", "self_attn.v_proj.bias", ("kv",), "qkv_bias"),
    _of_layer("q_norm", "attn_q_norm.weight", "self_attn.q_norm.weight", ("head",), "head_norms"),
    _of_layer("k_norm", "attn_k_norm.weight", "self_attn.k_norm.weight", ("head",), "head_norms"),
    _of_layer("out", "attn_output.weight", "self_attn.o_proj.weight", ("width", "q")),
    _of_layer("mlp_norm", "ffn_norm.weight", "post_attention_layernorm.weight", ("width",)),
    _of_layer("gate", "ffn_gate.weight", "mlp.gate_proj.weight", ("ffn", "width")),
    _of_layer("up", "ffn_up.weight", "mlp.up_proj.weight", ("ffn", "width")),
    _of_layer("down", "ffn_down.weight", "mlp.down_proj.weight", ("width", "ffn")),
)

# Tensors that may be there and are not weights of ours: rope's frequencies, which the config has read or computes
# itself, and the head of a tied model, which is its embedding once more.
SPARE = ("rope_freqs.weight", "rotary_emb.inv_freq", "attn_rot_embd.weight")
SPARE_WHEN_TIED = ("lm_head.weight",)


def sides(config: ModelConfig) -> Mapping[Side, int]:
    shape = config.attention
    return {
        "vocab": config.vocab,
        "width": config.width,
        "ffn": config.ffn,
        "q": shape.heads * shape.head_dim,
        "kv": shape.kv_heads * shape.head_dim,
        "head": shape.head_dim,
    }


def conditions(config: ModelConfig) -> Mapping[When, bool]:
    return {
        "always": True,
        "untied": not config.tied,
        "qkv_bias": config.qkv_bias,
        "head_norms": config.head_norms,
    }
