"""Attention blocks that change the width of a sequence, as UniTok's bottleneck and VFM-VAE's adapter use them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GeGlu(nn.Module):
    """w2(gelu(w0 x) * w1 x) with the tanh GELU, after a norm of its own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, hidden)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))
        return out


class ProjectionAttention(nn.Module):
    """Attention whose input and output widths differ: a narrower output is the mean over heads, not their concatenation."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__()
        inner = max(width_in, width_out)
        self._heads, self._average = heads, width_in > width_out
        self.qkv = nn.Linear(width_in, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.empty(inner))
        self.v_bias = nn.Parameter(torch.empty(inner))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.empty(inner))
        self.proj = nn.Linear(width_out, width_out)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        fused = torch.unflatten(F.linear(x, self.qkv.weight, bias), -1, (3, self._heads, -1))
        q, k, v = fused.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(h.mean(1) if self._average else h.transpose(1, 2).flatten(2))
        return out


class Projection(nn.Module):
    """A transformer block that changes the width."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in)
        self.attn = ProjectionAttention(width_in, width_out, heads)
        self.proj = nn.Linear(width_in, width_out)
        self.norm3 = nn.LayerNorm(width_in)
        self.norm2 = nn.LayerNorm(width_out)
        self.mlp = GeGlu(width_out, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
