"""VTP: continuous codes of a visual transformer pre-trained for understanding, read by a transformer of equal depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.network import NetworkTokenizer, load_network
from .nn.vit2d import (
    Attention,
    Block,
    GatedMlp,
    Norm,
    Rotate,
    imagenet,
    layer_norm,
    renamed,
    rotate_halves,
    swiglu_width,
)


class _RmsNorm(nn.Module):
    """x / rms(x) in float32, then the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
        return normed.to(x.dtype) * self.weight


def _rotation(grid: tuple[int, int], head_dim: int, prefix: int, device: torch.device) -> Rotate:
    """Return the published axial rotary code: tables and rotation in bfloat16, first `prefix` tokens not turned."""
    dtype = torch.bfloat16
    steps = torch.arange(head_dim // 4, device=device, dtype=dtype)
    periods = 100.0 ** (2 * steps / (head_dim // 2))
    rows, columns = (torch.arange(0.5, n, device=device, dtype=dtype) / n for n in grid)
    place = 2 * torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1) - 1
    angles = (2 * math.pi * place[:, :, None] / periods).flatten(1).tile(2)
    cos, sin = angles.cos(), angles.sin()

    def rotate(x: Tensor) -> Tensor:
        narrow = x.to(dtype)
        turned = rotate_halves(narrow[:, :, prefix:], cos, sin)
        return torch.cat([narrow[:, :, :prefix], turned], dim=2).to(x.dtype)

    return rotate


def _blocks(norm: Norm, width: int, depth: int, heads: int) -> nn.ModuleList:
    hidden = swiglu_width(width)
    return nn.ModuleList(Block(norm, width, Attention(width, heads), GatedMlp(width, hidden)) for _ in range(depth))


class Vtp(nn.Module):
    """Patches -> transformer -> linear bottleneck; 1x1 projection -> transformer -> pixel shuffle.

    Reference: VTP, arXiv:2512.13687, MiniMax-AI/VTP.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        bottleneck: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        patch_size: int = 16,
    ) -> None:
        super().__init__()
        self._patch, self._head, self._decoder_head = patch_size, width // heads, decoder_width // decoder_heads
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.blocks = _blocks(_RmsNorm, width, depth, heads)
        self.norm = _RmsNorm(width)
        self.bottleneck = nn.Linear(width, bottleneck, bias=False)
        self.proj_in = nn.Conv2d(bottleneck, decoder_width, 1)
        self.decoder_blocks = _blocks(layer_norm(1e-6), decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.proj_out = nn.Conv2d(decoder_width, 3 * patch_size**2, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to latents (B, bottleneck, H/16, W/16)."""
        mean, std = imagenet(x)
        grid_map = self.patch_embed((x - mean) / std)
        grid = (grid_map.shape[2], grid_map.shape[3])
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), grid_map.flatten(2).transpose(1, 2)], dim=1)
        rotate = _rotation(grid, self._head, 1, x.device)
        for block in self.blocks:
            h = block(h, rotate)
        out: Tensor = self.bottleneck(self.norm(h[:, 1:]))
        return torch.unflatten(out.transpose(1, 2), 2, grid).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, bottleneck, h, w) to (B, 3, 16h, 16w), nominally in [0, 1]."""
        grid = (latents.shape[2], latents.shape[3])
        h = self.proj_in(latents).flatten(2).transpose(1, 2)
        rotate = _rotation(grid, self._decoder_head, 0, latents.device)
        for block in self.decoder_blocks:
            h = block(h, rotate)
        pixels = self.proj_out(torch.unflatten(self.decoder_norm(h).transpose(1, 2), 2, grid))
        mean, std = imagenet(latents)
        return F.pixel_shuffle(pixels, self._patch) * std + mean


_LAYOUT = renamed(
    [
        (r"^trunk\.patch_embed\.proj\.", "patch_embed."),
        (r"^trunk\.feature_bottleneck\.", "bottleneck."),
        (r"^trunk\.", ""),
        (r"^pixel_decoder\.(blocks|norm)\.", r"decoder_\1."),
        (r"^pixel_decoder\.", ""),
        (r"\.mlp\.w1\.", ".mlp.gate."),
        (r"\.mlp\.w2\.", ".mlp.up."),
        (r"\.mlp\.w3\.", ".mlp.down."),
    ]
)
# Heads for text and pre-training; the periods of the rotary code are a formula.
_DROP = (
    "text_transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection*",
    "visual_proj.*", "logit_scale", "logit_bias", "mask_token", "*rope_embed.periods",
)  # fmt: skip


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return Vtp(**architecture)


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the trunk and the pixel decoder of a published model."""
    return load_network(card, weights, partial(network, card.architecture), layouts=[_LAYOUT], drop=_DROP)
