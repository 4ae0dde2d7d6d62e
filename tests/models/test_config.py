"""A model's shape is read from a GGUF's keys and from every spelling of config.json, and each number is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from models.config import ModelConfig, config_of
from models.rope import Scaling, rope_table
from quant.errors import ModelFileError, ModelFormatError, UnsupportedModel
from quant.open import open_checkpoint
from tests.tiny_models import hf_config, tiny, write_gguf, write_mlx

# The parts of published config.json files that say what the model is.
LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "quantization": {"group_size": 64, "bits": 4},
    "quantization_config": {"group_size": 64, "bits": 4},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_2_5_HALF_B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "head_dim": None,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}


def read(folder: Path, config: dict[str, Any]) -> ModelConfig:
    """The shape that a folder with this config.json has; its weights are looked at by nobody here."""
    target = folder / "model"
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": np.ones(8, np.float32)}, target / "model.safetensors")
    with open_checkpoint(target) as checkpoint:
        return config_of(checkpoint)


def test_llama_3_2_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA_3_2_1B)
    assert (config.architecture, config.vocab, config.width, config.layers) == ("llama", 128256, 2048, 16)
    assert (config.ffn, config.eps, config.context, config.tied) == (8192, 1e-5, 131072, True)
    shape = config.attention
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.scale, shape.window) == (32, 8, 64, 0.125, None)
    assert (shape.rope.theta, shape.rope.dims, shape.rope.interleaved) == (500000.0, 64, False)
    assert shape.rope.scaling == Scaling("llama3", 32.0, 8192, 1.0, 4.0)


def test_qwen_2_5_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN_2_5_HALF_B)
    assert (config.architecture, config.qkv_bias, config.head_norms, config.tied) == ("qwen2", True, False, True)
    assert (config.attention.head_dim, config.attention.window) == (64, None)
    assert config.attention.rope.scaling == Scaling()


def test_qwen_3_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN_3_0_6B)
    assert (config.architecture, config.qkv_bias, config.head_norms) == ("qwen3", False, True)
    assert (config.width, config.attention.heads, config.attention.head_dim) == (1024, 16, 128)


def test_mistral_is_read_with_and_without_its_window(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL_7B).attention.window is None
    first = MISTRAL_7B | {"sliding_window": 4096, "rope_theta": 10000.0, "vocab_size": 32000}
    assert read(tmp_path, first).attention.window == 4096
    assert read(tmp_path, first).attention.head_dim == 128


def test_yarn_as_qwen_documents_it_stretches_the_context(tmp_path: Path) -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = read(tmp_path, QWEN_2_5_HALF_B | {"rope_scaling": yarn})
    assert config.context == 131072
    assert config.attention.rope.scaling.magnitude == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
def test_both_spellings_of_rope_are_one(rope: str, tmp_path: Path) -> None:
    older = hf_config(tiny("llama", rope=rope))
    newer = {name: value for name, value in older.items() if name not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = (older["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": 10000.0}
    assert read(tmp_path, newer) == read(tmp_path, older)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_file_and_a_folder_of_one_model_have_one_shape(arch: str, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path, arch)) as file, open_checkpoint(write_mlx(tmp_path, arch)) as folder:
        ours, theirs = config_of(file), config_of(folder)
    assert ours.eps == pytest.approx(theirs.eps)  # a GGUF keeps it in float32
    assert ours.attention.rope.interleaved == (arch in ("llama", "mistral"))
    same = ("architecture", "vocab", "width", "layers", "ffn", "context", "tied", "qkv_bias", "head_norms")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 2**31),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", None),
        ("num_attention_heads", True),
        ("num_attention_heads", 2**63),
        ("intermediate_size", []),
        ("vocab_size", 2**40),
        ("head_dim", 10**6),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1e-5),
        ("rope_theta", 0),
        ("rope_theta", float("inf")),
        ("rope_theta", 1.0),
        ("max_position_embeddings", 2**62),
        ("rope_scaling", 5),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_a_wrong_quantity_is_refused_by_its_key(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=key):
        read(tmp_path, hf_config(tiny("llama")) | {key: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_key_value_heads": 3}, "KV heads"),
        ({"head_dim": 15}, "rope"),
        ({"head_dim": None, "num_attention_heads": 5}, "head_dim"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "low_freq",
        ),
    ],
)
def test_quantities_that_contradict_each_other_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=named):
        read(tmp_path, hf_config(tiny("llama")) | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": [], "model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "each type of layer"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    ],
)
def test_what_we_do_not_run_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read(tmp_path, hf_config(tiny("llama")) | change)


def test_a_window_on_some_layers_is_refused(tmp_path: Path) -> None:
    some = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    with pytest.raises(UnsupportedModel, match="some of the layers"):
        read(tmp_path, hf_config(tiny("qwen2")) | some)


def _written(folder: Path, architecture: str, edit: Callable[[gguf.GGUFWriter], None]) -> Path:
    """A GGUF of one tensor, with the keys of a tiny llama after an edit."""
    path = folder / "made.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 128,
        "context_length": 64,
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_uint32(f"{architecture}.attention.head_count", 4)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    edit(writer)
    writer.add_tensor("token_embd.weight", np.zeros((320, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_may_leave_out_what_follows_from_the_rest(tmp_path: Path) -> None:
    with open_checkpoint(_written(tmp_path, "llama", lambda writer: None)) as file:
        config = config_of(file)
    assert (config.vocab, config.tied, config.attention.kv_heads, config.attention.head_dim) == (320, True, 4, 16)
    assert (config.attention.rope.theta, config.attention.rope.dims) == (10000.0, 16)


def test_a_pair_that_never_turns_may_have_an_enormous_factor(tmp_path: Path) -> None:
    factors = np.array([1, 2, 4, 8, 16, 32, 64, 1e30], np.float32)
    path = _written(tmp_path, "llama", lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    with open_checkpoint(path) as file:
        assert config_of(file).attention.rope.factors == tuple(map(float, factors))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda w: w.add_uint32("llama.attention.head_count_kv", 0), "head_count_kv"),
        (lambda w: w.add_uint32("llama.vocab_size", 321), "vocab_size"),
        (lambda w: w.add_uint32("llama.rope.dimension_count", 18), "rope"),
        (lambda w: w.add_float32("llama.rope.freq_base", float("nan")), "freq_base"),
        (lambda w: w.add_string("llama.attention.sliding_window", "8"), "sliding_window"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(7, np.float32)), "rope_freqs"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "rope_freqs"),
    ],
)
def test_a_wrong_key_of_a_gguf_is_refused(edit: Callable[[gguf.GGUFWriter], None], named: str, tmp_path: Path) -> None:
    with open_checkpoint(_written(tmp_path, "llama", edit)) as file, pytest.raises(ModelFormatError, match=named):
        config_of(file)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda w: w.add_uint32("llama.expert_count", 8), "expert_count"),
        (lambda w: w.add_float32("llama.logit_scale", 0.5), "logit_scale"),
        (lambda w: w.add_array("llama.attention.causal", [True, True]), "attention.causal"),
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "longrope"),
        (lambda w: w.add_uint32("llama.attention.value_length", 32), "different lengths"),
    ],
)
def test_a_gguf_key_that_we_do_not_run_is_named(
    edit: Callable[[gguf.GGUFWriter], None], named: str, tmp_path: Path
) -> None:
    with open_checkpoint(_written(tmp_path, "llama", edit)) as file, pytest.raises(UnsupportedModel, match=named):
        config_of(file)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    with (
        open_checkpoint(_written(tmp_path, "mamba2", lambda writer: None)) as file,
        pytest.raises(UnsupportedModel, match="'mamba2'"),
    ):
        config_of(file)


WORD = st.text("ab\0é", max_size=4)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=6,
)
ROPE_KEYS = ["rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "truncate", "mscale"]


@given(
    config=st.dictionaries(st.sampled_from(sorted(hf_config(tiny("qwen2")))), ANYTHING, max_size=3),
    rope=st.dictionaries(st.sampled_from(ROPE_KEYS), ANYTHING | st.sampled_from(["yarn", "llama3", "linear"])),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_value_of_config_json_brings_more_than_a_model_error(
    config: dict[str, Any], rope: dict[str, Any], tmp_path: Path
) -> None:
    try:
        read_shape = read(tmp_path, hf_config(tiny("qwen2")) | {"rope_scaling": rope} | config)
    except ModelFileError:
        return
    assert np.isfinite(rope_table(read_shape.attention.rope, 3)).all()
