"""The network of cria: a small Llama in torch, with interleaved rope, so that its GGUF rows need no permutation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes that the GGUF file repeats."""

    vocab: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    hidden: int = 768
    eps: float = 1e-5
    rope_base: float = 10000.0
    context: int = 2048


def rotations(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, Dh/2) of every position below `length`."""
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_base**-pairs)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (B, T, H, Dh) with the pairs (2i, 2i+1) turned by their position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (T, 1, Dh/2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal attention where several query heads share one K and V head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q = nn.Linear(shape.width, q_rows, bias=False)
        self.k = nn.Linear(shape.width, kv_rows, bias=False)
        self.v = nn.Linear(shape.width, kv_rows, bias=False)
        self.output = nn.Linear(q_rows, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.shape
        q = rotate(self.q(x).view(b, t, s.heads, s.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k(x).view(b, t, s.kv_heads, s.head_dim), cos, sin).transpose(1, 2)
        v = self.v(x).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        # In float32: torch's bfloat16 attention takes twice as long on the CPU for texts as short as these.
        mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)  # (B, H, T, Dh)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(b, t, -1))
        return out


class GatedMLP(nn.Module):
    """The SwiGLU block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """One layer: attention, then the gated MLP, each on a normed copy of the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.attn = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.ffn = GatedMLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class Network(nn.Module):
    """Token ids (B, T) to the normed stream (B, T, D); `logits` is the tied head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.eps)
        cos, sin = rotations(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._start)
        for block in self.blocks:
            for last in (block.attn.output, block.ffn.down):  # type: ignore[union-attr]
                nn.init.normal_(last.weight, std=0.02 / (2 * shape.layers) ** 0.5)  # type: ignore[union-attr, arg-type]

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)  # (B, T, D)
        for block in self.blocks:
            x = block(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def logits(self, stream: Tensor) -> Tensor:
        """Scores (..., V) of the next token."""
        return F.linear(stream, self.embedding.weight)
