"""Llama and its kin compute what transformers computes, from a GGUF file and from a folder, however they are fed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.open import open_checkpoint
from tests.models.oracle import logits_of_weights, tolerance, transformers_logits, weights_of_gguf
from tests.models.passes import Runner
from tests.tiny_models import tiny, write_gguf, write_mlx

TOKENS = np.random.default_rng(7).integers(0, 320, 48).tolist()
PAGES = (5, 0)  # 64 slots, out of order

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-large-eps": ("llama", {"eps": 0.02}),
    "llama-theta": ("llama", {"theta": 500000.0}),
    "llama-wide-heads": ("llama", {"head_dim": 32, "heads": 8, "kv_heads": 2}),
    "llama-linear": ("llama", {"rope": "linear"}),
    "llama-llama3": ("llama", {"rope": "llama3", "theta": 500.0}),
    "llama-yarn": ("llama", {"rope": "yarn"}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"window": 10}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-yarn": ("qwen2", {"tied": True, "rope": "yarn"}),
    "qwen2-window": ("qwen2", {"window": 10}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tied": True, "head_dim": 32}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
both_writers = pytest.mark.parametrize("write", [write_gguf, write_mlx], ids=["gguf", "folder"])


@every_case
@both_writers
def test_logits_equal_those_of_transformers(
    case: tuple[str, dict[str, Any]], write: Callable[..., Path], tmp_path: Path
) -> None:
    arch, shape = case
    theirs = transformers_logits(tiny(arch, **shape), TOKENS, tmp_path)
    runner = Runner(write(tmp_path, arch, **shape))
    chunks = [20, 1, 1, 3, 23]
    for end, ours in zip(np.cumsum(chunks), runner.last_logits(TOKENS, chunks, PAGES), strict=True):
        np.testing.assert_allclose(ours, theirs[end - 1], rtol=0, atol=tolerance(theirs))


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_decoding_token_by_token_equals_one_prefill(arch: str, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"window": 10} if arch == "mistral" else {}
    theirs = transformers_logits(tiny(arch, **shape), TOKENS, tmp_path)
    runner = Runner(write_gguf(tmp_path, arch, **shape))
    whole = runner.last_logits(TOKENS, [len(TOKENS)], PAGES)[0]
    ones = runner.every_logits(TOKENS, PAGES)
    np.testing.assert_allclose(ones, theirs, rtol=0, atol=tolerance(theirs))
    np.testing.assert_allclose(whole, ones[-1], rtol=0, atol=tolerance(theirs))


@pytest.mark.parametrize(
    "kind",
    ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "mxfp4"],
)
def test_a_quantised_file_computes_with_what_the_gguf_package_decodes(kind: str, tmp_path: Path) -> None:
    made = tiny("llama", kind)
    path = write_gguf(tmp_path, "llama", kind=kind)
    theirs = logits_of_weights(made, weights_of_gguf(path, made), TOKENS, tmp_path)
    ours = Runner(path).last_logits(TOKENS, [len(TOKENS)], PAGES)[0]
    np.testing.assert_allclose(ours, theirs[-1], rtol=0, atol=tolerance(theirs))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_quantised_folder_computes_with_what_its_planes_decode_to(bits: int, group: int, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"width": 128, "head_dim": 32}
    path = write_mlx(tmp_path, "qwen3", bits=bits, group=group, layers=1)
    with open_checkpoint(path) as checkpoint:
        weights = {name: tensor.values() for name, tensor in checkpoint.tensors.items()}
    theirs = logits_of_weights(tiny("qwen3", layers=1, **shape), weights, TOKENS, tmp_path)
    ours = Runner(path).last_logits(TOKENS, [len(TOKENS)], PAGES)[0]
    np.testing.assert_allclose(ours, theirs[-1], rtol=0, atol=tolerance(theirs))
