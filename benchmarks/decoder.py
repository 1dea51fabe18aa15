"""A Llama-like decoder in plain PyTorch, so that the end-to-end step needs no other library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Dimensions of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


SIZES = {
    "tiny": Size(layers=1, hidden=32, heads=2, kv_heads=1, intermediate=64, vocab=130),
    "small": Size(layers=4, hidden=256, heads=8, kv_heads=4, intermediate=704, vocab=16384),
    "SmolLM2-135M": Size(layers=30, hidden=576, heads=9, kv_heads=3, intermediate=1536, vocab=49152),
}


class Decoder(nn.Module):
    """Token ids `[B, T]` to hidden states `[B, T, D]`, normalised; `lm_head` is tied to the embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocab, size.hidden)
        self.layers = nn.ModuleList([_Layer(size) for _ in range(size.layers)])
        self.norm = nn.RMSNorm(size.hidden)
        nn.init.normal_(self.embedding.weight, std=size.hidden**-0.5)

    @property
    def lm_head(self) -> Tensor:
        """`[V, D]`."""
        return self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = size.heads, size.kv_heads, size.hidden // size.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size.hidden), nn.RMSNorm(size.hidden)
        self.qkv = nn.Linear(size.hidden, (size.heads + 2 * size.kv_heads) * self.width, bias=False)
        self.output = nn.Linear(size.hidden, size.hidden, bias=False)
        self.gate_up = nn.Linear(size.hidden, 2 * size.intermediate, bias=False)
        self.down = nn.Linear(size.intermediate, size.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        heads = self.qkv(self.attention_norm(hidden)).view(batch, length, -1, self.width).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        attended = F.scaled_dot_product_attention(_rotated(q), _rotated(k), v, is_causal=True, enable_gqa=True)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)


def _rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of `[B, H, T, W]`."""
    length, half = x.shape[2], x.shape[3] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
