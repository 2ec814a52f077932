"""Focal modulation over time (Yang et al. 2022, arXiv 2203.11926; Della Libera et al. 2025): FocalCodec's two towers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin^2(alpha x) / (alpha + 1e-9), alpha by channel. Ziyin et al., 2020.

    State dict: `alpha` (C, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T)."""
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class FocalModulation(nn.Module):
    """Each place is multiplied by a gated sum of ever wider contexts, the last one the mean over the whole clip.

    State dict: `in_proj.*`, `layers.i.0.*`, `context_proj.*`, `out_proj.*`.
    """

    def __init__(self, dim: int, window: int, levels: int, factor: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim + levels + 1)
        kernels = [window + factor * level for level in range(levels)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(dim, dim, kernel, padding="same", groups=dim), nn.GELU()) for kernel in kernels
        )
        self.context_proj = nn.Conv1d(dim, dim, 1)
        self.out_proj = nn.Linear(dim, dim)
        self._split = [dim, dim, levels + 1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim)."""
        query, context, gates = self.in_proj(x).transpose(1, 2).split(self._split, dim=1)
        total = torch.zeros_like(context)
        for level, layer in enumerate(self.layers):
            context = layer(context)
            total = total + context * gates[:, level : level + 1]
        total = total + F.gelu(context.mean(-1, keepdim=True)) * gates[:, -1:]
        y: Tensor = self.out_proj((query * self.context_proj(total)).transpose(1, 2))
        return y


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 4 * dim)
        self.out_proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_proj(F.gelu(self.in_proj(x)))
        return y


class FocalBlock(nn.Module):
    """Focal modulation and a feed-forward part, each behind a layer norm and added to its input.

    State dict: `modulation_norm.*`, `modulation.*`, `feed_forward_norm.*`, `feed_forward.{in,out}_proj.*`.
    """

    def __init__(self, dim: int, window: int, levels: int, factor: int) -> None:
        super().__init__()
        self.modulation_norm = nn.LayerNorm(dim)
        self.modulation = FocalModulation(dim, window, levels, factor)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = _FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim)."""
        x = x + self.modulation(self.modulation_norm(x))
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class _Down(nn.Module):
    def __init__(self, dim: int, out: int, factor: int) -> None:
        super().__init__()
        self.downscale = nn.Conv1d(dim, out, factor, factor)
        self.activation = Snake(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % self.downscale.stride[0]))
        y: Tensor = self.activation(self.downscale(x)).transpose(1, 2)
        return y


class _Up(nn.Module):
    def __init__(self, dim: int, out: int, factor: int) -> None:
        super().__init__()
        self.activation = Snake(dim)
        self.upscale = nn.ConvTranspose1d(dim, out, factor, factor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.upscale(self.activation(x.transpose(1, 2))).transpose(1, 2)
        return y


class FocalEncoder(nn.Module):
    """Convolutions that may lower the rate, each followed by a focal block, and a linear map to the code.

    State dict: `layers.i.downscale.*`, `layers.i.focal_block.*`, `out_proj.*`. A partial step at the end of a clip is filled
    with zeros.
    """

    def __init__(
        self,
        channels: int,
        code: int,
        dims: Sequence[int],
        factors: Sequence[int],
        window: int,
        levels: int,
        factor: int,
    ) -> None:
        super().__init__()
        layers = []
        for dim, step in zip(dims, factors, strict=True):
            parts = {"downscale": _Down(channels, dim, step), "focal_block": FocalBlock(dim, window, levels, factor)}
            layers.append(nn.ModuleDict(parts))
            channels = dim
        self.layers = nn.ModuleList(layers)
        self.out_proj = nn.Linear(channels, code)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, channels) to (B, ceil(T / product of the factors), code)."""
        for layer in self.layers:
            x = layer["focal_block"](layer["downscale"](x))  # type: ignore[index]
        y: Tensor = self.out_proj(x)
        return y


class FocalDecoder(nn.Module):
    """The encoder backwards: a linear map from the code, then focal blocks, each followed by a convolution.

    State dict: `in_proj.*`, `layers.i.focal_block.*`, `layers.i.upscale.*`.
    """

    def __init__(
        self,
        code: int,
        channels: int,
        dims: Sequence[int],
        factors: Sequence[int],
        window: int,
        levels: int,
        factor: int,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(code, dims[0])
        layers = []
        for dim, out, step in zip(dims, [*dims[1:], channels], factors, strict=True):
            parts = {"focal_block": FocalBlock(dim, window, levels, factor), "upscale": _Up(dim, out, step)}
            layers.append(nn.ModuleDict(parts))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, code) to (B, L x product of the factors, channels)."""
        x = self.in_proj(x)
        for layer in self.layers:
            x = layer["upscale"](layer["focal_block"](x))  # type: ignore[index]
        return x
