"""The vision transformer of CLIP, as tokenizers carry it in their own checkpoints."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to itself."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Norm, attention, norm, MLP with GELU, or with its sigmoid approximation if `quick`."""

    def __init__(self, width: int, heads: int, *, quick: bool = False) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        activation = QuickGELU() if quick else nn.GELU()
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, W) to the same shape."""
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class ClipVision(nn.Module):
    """Patches of an image to features of them. Radford et al., 2021 (arXiv:2103.00020), without its last projection.

    Args:
        width: Channels.
        layers: Blocks.
        heads: Of attention.
        side: Patches a side of the learned positions.
        patch: Pixels a side of a patch.
    """

    def __init__(self, width: int, layers: int, heads: int, side: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = nn.ModuleList(Block(width, heads, quick=True) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to a map of features (B, width, H / patch, W / patch), normed, without the class token."""
        grid = self.conv1(x)
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), tokens], dim=1)
        h = self.ln_pre(tokens + stretched(self.positional_embedding, (grid.shape[2], grid.shape[3])))
        blocks: nn.ModuleList = self.transformer["resblocks"]  # type: ignore[assignment]
        for block in blocks:
            h = block(h)
        out: Tensor = self.ln_post(h)[:, 1:].transpose(1, 2).reshape(grid.shape)
        return out


def stretched(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring positions (1 + n * n, W), class first, to another grid, as DINO does: by the scale (side + 0.1) / n.

    The scale itself, not the ratio of the sizes, places the samples, so this is not an interpolation to a size.
    """
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    image = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    return torch.cat([positions[:1], image.flatten(2)[0].T])
