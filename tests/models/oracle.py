"""Logits by transformers, on the CPU in float32: the outside oracle of the model definitions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import Tiny, gguf_name, halved, hf_config, hf_weights

Floats = npt.NDArray[np.float32]


def transformers_logits(made: Tiny, tokens: list[int], folder: Path, seed: int = 0) -> Floats:
    """Logits (T, V) of every token of a tiny model in float32."""
    return logits_of_weights(made, hf_weights(made, seed), tokens, folder)


def logits_of_weights(made: Tiny, weights: dict[str, Floats], tokens: list[int], folder: Path) -> Floats:
    """Logits (T, V) of every token, for weights by their transformers names."""
    home = folder / "oracle"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps(hf_config(made)))
    config = AutoConfig.from_pretrained(home)
    build: Callable[..., Any] = AutoModelForCausalLM.from_config
    model = build(config, attn_implementation="eager", dtype=torch.float32).eval()
    state = {name: torch.tensor(values) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if made.tied else [])
    with torch.no_grad():
        logits: Floats = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def tolerance(logits: Floats) -> float:
    """How far two float32 computations of a tiny model's logits may lie apart.

    A sum of 64 to 256 products errs by some 8 to 16 units in the last place of its terms; 15 such sums follow each
    other, and their errors add up as a random walk: 16 * sqrt(15) units of the largest logit.
    """
    return float(64 * np.finfo(np.float32).eps * np.abs(logits).max())


def weights_of_gguf(path: Path, made: Tiny) -> dict[str, Floats]:
    """What a GGUF's tensors decode to by the gguf package, by their transformers names, rows in transformers' order."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights: dict[str, Floats] = {}
    for name in hf_weights(made):
        tensor = stored[gguf_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        permuted = made.arch in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name)
        weights[name] = halved(values, made.head_dim) if permuted else values
    return weights
