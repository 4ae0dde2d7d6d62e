"""Rope turns as transformers turns it, whatever its scaling."""

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.facts import Facts
from models.rope import Rope, rope_table
from models.rope_scaling import gguf_scaling, json_scaling

Floats = npt.NDArray[np.float64]

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 7.0, "original": 512},
    {"rope_type": "yarn", "factor": 4.0, "original": 32768},
    {"rope_type": "yarn", "factor": 40.0, "original": 4096, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    {"rope_type": "yarn", "factor": 16.0, "original": 64, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 16.0, "original": 64, "attention_factor": 1.25},
]


def spelled(scaling: dict[str, Any]) -> dict[str, Any]:
    return {{"original": "original_max_position_embeddings"}.get(key, key): v for key, v in scaling.items()}


def turned_by_transformers(scaling: dict[str, Any], theta: float, dims: int) -> tuple[Floats, float]:
    """Radians a pair turns by from one position to the next, and what cos and sin are multiplied by."""
    config = LlamaConfig(
        hidden_size=dims,
        num_attention_heads=1,
        max_position_embeddings=131072,
        rope_parameters=spelled(scaling) | {"rope_theta": theta},
    )
    turns, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    return turns.numpy().astype(np.float64), float(magnitude)


@pytest.mark.parametrize("dims", [64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s['rope_type']}-{s['factor']:g}")
def test_a_scaled_rope_turns_as_in_transformers(scaling: dict[str, Any], theta: float, dims: int) -> None:
    turns, magnitude = turned_by_transformers(scaling, theta, dims)
    facts = Facts(Path(__file__), {"max_position_embeddings": 131072, "rope_scaling": spelled(scaling)})
    table = rope_table(Rope(theta, dims, False, json_scaling(facts)), 2).astype(np.float64)
    ours = np.arctan2(table[1, dims // 2 :], table[1, : dims // 2])
    # Theirs are float32 powers, quotients and blends, ours one rounding of cos and sin: a few units in the last place,
    # of the whole turn where cos and sin were rounded, and of the wavelength where llama3 compares it.
    np.testing.assert_allclose(ours, turns, rtol=8e-6, atol=4e-7)
    np.testing.assert_allclose(table[0, : dims // 2], magnitude, rtol=2**-23)


@settings(deadline=None)
@given(theta=st.floats(2, 1e8), dims=st.integers(1, 64).map(lambda n: 2 * n), position=st.integers(0, 4095))
def test_an_unscaled_rope_is_its_definition(theta: float, dims: int, position: int) -> None:
    row = rope_table(Rope(theta, dims, False), position + 1)[position]
    angles = [position * theta ** (-2 * i / dims) for i in range(dims // 2)]
    due = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    np.testing.assert_allclose(row, due, rtol=0, atol=2**-24)  # half a unit in the last place of 1


def test_factors_divide_the_turns() -> None:
    factors = (1.0, 2.0, 4.0, 1e29)
    table = rope_table(Rope(100.0, 8, True, factors=factors), 2)
    turns = [100.0 ** (-i / 4) / f for i, f in enumerate(factors)]
    np.testing.assert_allclose(table[1], np.concatenate([np.cos(turns), np.sin(turns)]), rtol=2**-23)


def test_a_table_is_made_in_little_more_memory_than_it_takes() -> None:
    tracemalloc.start()
    try:
        table = rope_table(Rope(500000.0, 128, False), 32768)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * table.nbytes


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_a_gguf_says_yarn_as_a_config_json_does(factor: float) -> None:
    keys = {"type": "yarn", "factor": factor, "original_context_length": 64}
    file = Facts(
        Path(__file__), {f"llama.rope.scaling.{key}": v for key, v in keys.items()} | {"llama.context_length": 256}
    )
    yarn = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 64}
    assert gguf_scaling(file, "llama") == json_scaling(Facts(Path(__file__), {"rope_scaling": yarn}))
