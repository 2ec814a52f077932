"""Transformers that read a map of features into a row of tokens and back: the queries of DETR, as GigaTok uses them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a transformer; the MLP is four times as wide."""

    width: int
    depth: int
    heads: int


class QueryLayer(nn.Module):
    """Queries attend to themselves, then to a memory, then an MLP; norms come first. Carion et al., DETR, 2020."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.self_attn = nn.MultiheadAttention(width, size.heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, size.heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, places: Tensor, memory: Tensor, memory_places: Tensor) -> Tensor:
        """Map queries (B, N, W) at `places` (1, N, W) to the same shape, given a memory (B, M, W) at its places."""
        h = self.norm1(x)
        x = x + self.self_attn(h + places, h + places, h, need_weights=False)[0]
        h = self.norm2(x)
        x = x + self.multihead_attn(h + places, memory + memory_places, memory, need_weights=False)[0]
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm3(x))))
        return out


class Reader(nn.Module):
    """A map of features (B, C, g, g) to tokens (B, C, N).

    Queries start as averages of the map over 1x1, 1x1, 1x2, 2x2, 2x4, ... blocks, which makes N = 2^n of them.

    Args:
        size: Of the transformer.
        channels: C.
        side: g.
        tokens: N.
        doubled_from: ReTok reads the tokens from this one on a second time, at places of their own, and discards them
            after training; 0: there are none.
    """

    def __init__(self, size: Size, channels: int, side: int, tokens: int, doubled_from: int = 0) -> None:
        super().__init__()
        self.tokens, self.doubled_from = tokens, doubled_from
        self.ln_pre = nn.LayerNorm(channels)
        self.encoder_embed = nn.Linear(channels, size.width)
        self.positional_embedding = nn.Parameter(torch.empty(side**2, 1, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(tokens, 1, size.width))
        if doubled_from:
            extra = torch.empty(tokens - doubled_from, 1, size.width)
            self.latent_token_positional_embedding_comp = nn.Parameter(extra)
        self.global_proj = nn.Linear(size.width, size.width)
        self.transformer = nn.ModuleList(QueryLayer(size) for _ in range(size.depth))
        self.ln_post = nn.LayerNorm(size.width)
        self.conv_out = nn.Conv2d(size.width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, g, g) to (B, C, N)."""
        memory = self.encoder_embed(self.ln_pre(x.flatten(2).transpose(1, 2)))
        grid = memory.transpose(1, 2).unflatten(2, x.shape[2:])
        queries = averages(grid, self.tokens)
        places = self.latent_token_positional_embedding
        if self.doubled_from:
            queries = torch.cat([queries, queries[:, self.doubled_from :]], dim=1)
            places = torch.cat([places, self.latent_token_positional_embedding_comp])  # type: ignore[assignment]
        h = self.global_proj(queries)
        for layer in self.transformer:
            h = layer(h, places.transpose(0, 1), memory, self.positional_embedding.transpose(0, 1))
        out: Tensor = self.conv_out(self.ln_post(h)[:, : self.tokens].transpose(1, 2).unsqueeze(2))
        return out.squeeze(2)


class Writer(nn.Module):
    """Tokens (B, C, N), all or the first ones, to a map of features (B, C, g, g); every query starts as the first token."""

    def __init__(self, size: Size, channels: int, side: int, tokens: int, doubled_from: int = 0) -> None:
        super().__init__()
        self.side = side
        self.ln_pre = nn.LayerNorm(channels)
        self.decoder_embed = nn.Linear(channels, size.width)
        self.positional_embedding = nn.Parameter(torch.empty(side**2, 1, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(tokens, 1, size.width))
        if doubled_from:
            extra = torch.empty(tokens - doubled_from, 1, size.width)
            self.latent_token_positional_embedding_comp = nn.Parameter(extra)
        self.transformer = nn.ModuleList(QueryLayer(size) for _ in range(size.depth))
        self.ln_post = nn.LayerNorm(size.width)
        self.conv_out = nn.Conv2d(size.width, channels, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, C, n), n up to N, to (B, C, g, g)."""
        memory = self.decoder_embed(self.ln_pre(tokens.transpose(1, 2)))
        memory_places = self.latent_token_positional_embedding[: memory.shape[1]].transpose(0, 1)
        h = memory[:, :1].expand(-1, self.side**2, -1)
        for layer in self.transformer:
            h = layer(h, self.positional_embedding.transpose(0, 1), memory, memory_places)
        grid = self.ln_post(h).transpose(1, 2).reshape(len(h), -1, self.side, self.side)
        out: Tensor = self.conv_out(grid)
        return out


def averages(grid: Tensor, count: int) -> Tensor:
    """Return (B, count, C) means of a map (B, C, H, W): whole, whole, left and right halves, quarters, ...

    A level has twice the blocks of the one before, split across the width first, each row by row. `count` is a power of 2.
    """
    parts = [F.adaptive_avg_pool2d(grid, 1)]
    for level in range(count.bit_length() - 1):
        parts.append(F.adaptive_avg_pool2d(grid, (2 ** (level // 2), 2 ** ((level + 1) // 2))))
    return torch.cat([part.flatten(2) for part in parts], dim=2).transpose(1, 2)
