"""FQGAN: LlamaGen's network whose code is factorised into two or three tables, each behind a transformer of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.clip import Block
from .nn.latent import LatentTokenizer
from .nn.llamagen import fill
from .nn.quantize import ParallelQuantizer, VectorQuantizer
from .nn.taming import Decoder, Encoder, Trunk, official_key


class Branch(nn.Module):
    """A transformer over the map of features at learned places, then the encoder's last layers."""

    def __init__(self, width: int, depth: int, heads: int, side: int, z_channels: int, dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(side**2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(z_channels, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, W, g, g) to latents (B, D, g, g)."""
        h = self.ln_pre(x.flatten(2).transpose(1, 2) + self.positional_embedding)
        for block in self.transformer:
            h = block(h)
        grid = self.ln_post(h).transpose(1, 2).reshape(x.shape)
        latents: Tensor = self.quant_conv(self.conv_out(nn.functional.silu(self.norm_out(grid))))
        return latents


class FQGAN(nn.Module):
    """A shared encoder, a branch a table, one decoder of all rows side by side. Bai et al., 2024 (arXiv:2411.16681).

    Args:
        names: Of the tables, in the order the decoder takes them: `vis`, `sem`, or `vis`, `sem_mid`, `sem_high`.
        ch_mult: Of the CNNs; five levels downsample by 16, four by 8.
        codebook_size: Rows of each table.
        image_size: Side of the image in pixels; the learned places fix it.
        ch: Channels of the finest level.
        z_channels: Channels before the code.
        embed_dim: Channels of a row.
        depth: Blocks of a branch.
        heads: Of its attention.
    """

    def __init__(
        self,
        names: Sequence[str],
        ch_mult: Sequence[int],
        codebook_size: int,
        *,
        image_size: int = 256,
        ch: int = 128,
        z_channels: int = 256,
        embed_dim: int = 8,
        depth: int = 6,
        heads: int = 8,
    ) -> None:
        super().__init__()
        levels = len(ch_mult)
        trunk = Trunk(ch, tuple(ch_mult), 2, z_channels, attention=(levels - 1,))
        side, width = image_size // 2 ** (levels - 1), ch * ch_mult[-1]
        self.encoder, self.decoder = Encoder(trunk, head=False), Decoder(trunk)
        self.branches = nn.ModuleDict(
            {name: Branch(width, depth, heads, side, z_channels, embed_dim) for name in names}
        )
        self.quantize = ParallelQuantizer({name: VectorQuantizer(codebook_size, embed_dim, "cosine") for name in names})
        self.post_quant_conv = nn.Conv2d(len(names) * embed_dim, z_channels, 1)

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1] to (B, tables x D, g, g)."""
        features = self.encoder(x)
        return torch.cat([branch(features) for branch in self.branches.values()], dim=1)

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, tables x D, g, g) to (B, 3, S, S), nominally in [-1, 1]."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out


_BRANCH = re.compile(r"^branches\.(vis|sem)(\w*)\.(quant_conv|norm_out|conv_out|)(.*)$")
_HEAD: Mapping[str, str] = MappingProxyType({"vis": "visual_head", "sem": "semantic_head"})


def published_key(own: str, card: Card) -> str:
    """Spell a key of `FQGAN` as the published files do."""
    match = _BRANCH.match(own)
    if match is None:
        own = re.sub(r"^quantize\.(\w+)\.", r"quantize_\1.", own)
        return official_key(own, "llamagen", len(card.architecture["ch_mult"]))
    kind, rank, part, rest = match.groups()
    if part == "quant_conv":
        return f"{part}_{kind}{rank}{rest}"
    return f"encoder.{part}_{kind}{rank}{rest}" if part else f"encoder.{_HEAD[kind]}{rank}.0.{rest}"


def network(card: Card) -> FQGAN:
    """Build the module a card describes."""
    arch: dict[str, Any] = dict(card.architecture)
    return FQGAN(codebook_size=card.spec.codebook_size[0], **arch)


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load a training checkpoint without its usage statistics and its feature heads."""
    drop = ("*.codebook_used", "feat_pred_head.*", "mid_sem_feat_pred.*", "high_sem_feat_pred.*")
    net = fill(weights, lambda: network(card), lambda own: published_key(own, card), drop=drop)
    return LatentTokenizer(card.spec, net, net.quantize)
