"""Writes cria as GGUF: Q8_0 matrices, float norms, the tokenizer and the chat template."""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from models.cria.network import Shape
from models.cria.render import TEMPLATE
from models.cria.tokenizer import CONTROL, END_ID, PAD_ID, VISIBLE

_OF_LAYER = {
    "attn_norm": "attn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.output": "attn_output",
    "ffn_norm": "ffn_norm", "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip


def tensor_name(parameter: str) -> str:
    """The GGUF name of a parameter of the network."""
    if parameter in ("embedding.weight", "norm.weight"):
        return {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[parameter]
    layer, inner = parameter.removeprefix("blocks.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_OF_LAYER[inner]}.weight"


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The sizes of the network."""
    writer.add_name("cria")
    writer.add_description("The small demo model of Puna.")
    writer.add_license("apache-2.0")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter, saved: Path) -> None:
    """The vocabulary, the merges, and which tokens are not text."""
    model = json.loads(saved.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kinds = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL) | dict.fromkeys(VISIBLE, gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(END_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def add_tensor(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32]) -> None:
    """A matrix in Q8_0, a vector as it is."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def export(folder: Path, out: Path) -> None:
    """Leaves the model of a training folder in one GGUF file."""
    checkpoint = torch.load(folder / "cria.pt", weights_only=True)
    writer = gguf.GGUFWriter(out, "llama")
    add_shape(writer, Shape(**checkpoint["shape"]))
    add_tokenizer(writer, folder / "tokenizer.json")
    for parameter, values in checkpoint["weights"].items():
        add_tensor(writer, tensor_name(parameter), values.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, required=True, help="folder that train.py left")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cria.gguf")
    given = parser.parse_args()
    export(given.trained, given.out)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
