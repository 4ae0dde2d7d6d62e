"""Llama and its kin (Mistral, Qwen2, Qwen3): one definition for every device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from models.config import ModelConfig
from models.ops import Attention, GatedMLP, HeadNorms, Linear, Loader, Matrix, Ops, Rows
from models.weights import Found, find
from quant.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layer:
    attention: Attention
    mlp: GatedMLP


@dataclass(frozen=True)
class Llama:
    """The weights on a device. Tied models share one matrix between embedding and head."""

    config: ModelConfig
    embedding: Matrix
    layers: Sequence[Layer]
    norm: mx.array  # (D,)
    head: Linear

    @classmethod
    def load(cls, config: ModelConfig, checkpoint: Checkpoint, loader: Loader) -> Self:
        """Every tensor is found and checked before the first is brought to the device."""
        found = find(config, checkpoint)
        embedding = loader.matrix(found["embedding"])
        return cls(
            config=config,
            embedding=embedding,
            layers=[_layer(config, found, i, loader) for i in range(config.layers)],
            norm=loader.vector(found["norm"]),
            head=Linear(embedding if config.tied else loader.matrix(found["head"])),
        )

    def forward(self, ops: Ops) -> mx.array:
        """Logits (P, V) of the rows that the batch picks."""
        x = ops.embed(self.embedding)
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x = ops.add_attention(i, x, layer.attention, Rows.PICKED if last else Rows.ALL)
            x = ops.add_mlp(x, layer.mlp)
        return ops.logits(x, self.norm, self.head)


def _layer(config: ModelConfig, found: Found, layer: int, loader: Loader) -> Layer:
    def linear(name: str) -> Linear:
        return Linear(loader.matrix(found[layer, name]))

    def biased(name: str) -> Linear:
        bias = loader.vector(found[layer, f"{name}_bias"]) if config.qkv_bias else None
        return Linear(loader.matrix(found[layer, name]), bias)

    def vector(name: str) -> mx.array:
        return loader.vector(found[layer, name])

    return Layer(
        attention=Attention(
            norm=vector("attn_norm"),
            q=biased("q"),
            k=biased("k"),
            v=biased("v"),
            head_norms=HeadNorms(vector("q_norm"), vector("k_norm")) if config.head_norms else None,
            out=linear("out"),
        ),
        mlp=GatedMLP(vector("mlp_norm"), linear("gate"), linear("up"), linear("down")),
    )
