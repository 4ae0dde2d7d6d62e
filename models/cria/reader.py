"""Reads cria back from its GGUF into torch, to check the file and to ask it questions."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from models.cria.export import tensor_name
from models.cria.network import Network, Shape
from models.cria.tokenizer import END_ID, untrained


@dataclass(frozen=True)
class Reader:
    """A network and its tokenizer, as the file holds them."""

    network: Network
    tokenizer: Tokenizer

    def answer(self, prompt: str, most: int = 120) -> str:
        """The greedy continuation of a rendered prompt, up to the end token."""
        ids: list[int] = self.tokenizer.encode(prompt).ids
        start = len(ids)
        with torch.inference_mode():
            while len(ids) - start < most:
                stream = self.network(torch.tensor([ids]))
                best = int(self.network.logits(stream[0, -1]).argmax())
                if best == END_ID:
                    break
                ids.append(best)
        text: str = self.tokenizer.decode(ids[start:], skip_special_tokens=False)
        return text


def _shape(fields: dict[str, gguf.ReaderField]) -> Shape:
    def value(key: str) -> int:
        return int(fields[f"llama.{key}"].contents())

    return Shape(
        vocab=value("vocab_size"),
        width=value("embedding_length"),
        layers=value("block_count"),
        heads=value("attention.head_count"),
        kv_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        hidden=value("feed_forward_length"),
        eps=float(fields["llama.attention.layer_norm_rms_epsilon"].contents()),
        rope_base=float(fields["llama.rope.freq_base"].contents()),
        context=value("context_length"),
    )


def _tokenizer(fields: dict[str, gguf.ReaderField]) -> Tokenizer:
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = untrained()
    tokenizer.model = BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    visible = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in visible])
    return tokenizer


def read(path: Path) -> Reader:
    """The model of a file, its matrices decoded."""
    file = gguf.GGUFReader(path)
    network = Network(_shape(file.fields))
    held = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in file.tensors}
    weights = {
        parameter: torch.from_numpy(np.array(held[tensor_name(parameter)], np.float32)).view(old.shape)
        for parameter, old in network.state_dict().items()
    }
    network.load_state_dict(weights)
    network.eval()
    return Reader(network, _tokenizer(file.fields))
