"""Vocos (Siuzdak 2023, arXiv 2306.00814), as several codecs decode with it: ConvNeXt layers and an inverse STFT."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6


class AdaptiveLayerNorm(nn.Module):
    """Layer norm over the last axis whose scale and shift are the first rows of two tables (bandwidth 0).

    State dict: `scale.weight` (rows, dim), `shift.weight` (rows, dim).
    """

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Embedding(rows, dim)
        self.shift = nn.Embedding(rows, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return F.layer_norm(x, x.shape[-1:], eps=_EPS) * self.scale.weight[0] + self.shift.weight[0]


def _norm(dim: int, rows: int | None) -> nn.Module:
    return nn.LayerNorm(dim, eps=_EPS) if rows is None else AdaptiveLayerNorm(rows, dim)


class ConvNextBlock(nn.Module):
    """A depthwise convolution of width 7 and two linear layers around GELU, scaled by channel and added to the input.

    State dict: `dwconv.*`, `norm.*`, `pwconv1.*`, `pwconv2.*`, `gamma` (dim,).
    """

    def __init__(self, dim: int, hidden: int, rows: int | None = None) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = _norm(dim, rows)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, T) to (B, dim, T)."""
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        out: Tensor = x + y.transpose(1, 2)
        return out


class _ResnetBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, dim, eps=_EPS)
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, dim, eps=_EPS)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(y)))
        return out


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=_EPS)
        self.q = nn.Conv1d(dim, dim, 1)
        self.k = nn.Conv1d(dim, dim, 1)
        self.v = nn.Conv1d(dim, dim, 1)
        self.proj_out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        out: Tensor = x + self.proj_out(mixed.transpose(1, 2))
        return out


class VocosBackbone(nn.Module):
    """ConvNeXt layers over frames, with attention over the whole clip before them where WavTokenizer added it.

    State dict: `embed.*`, `pos_net.0..5.*` if `attention`, `norm.*`, `convnext.i.*`, `final_layer_norm.*`.

    Args:
        channels: Of the input.
        dim: Width.
        hidden: Width inside a layer.
        layers: How many.
        rows: Of the tables of adaptive norms; None for plain ones.
        attention: Whether there is WavTokenizer's `pos_net`.
    """

    def __init__(
        self, channels: int, dim: int, hidden: int, layers: int, *, rows: int | None = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(channels, dim, 7, padding=3)
        parts: list[nn.Module] = []
        if attention:
            parts = [_ResnetBlock(dim), _ResnetBlock(dim), _Attention(dim), _ResnetBlock(dim), _ResnetBlock(dim)]
            parts.append(nn.GroupNorm(32, dim, eps=_EPS))
        self.pos_net = nn.Sequential(*parts)
        self.norm = _norm(dim, rows)
        self.convnext = nn.ModuleList(ConvNextBlock(dim, hidden, rows) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, frames) to (B, frames, dim)."""
        y = self.norm(self.pos_net(self.embed(x)).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            y = block(y)
        out: Tensor = self.final_layer_norm(y.transpose(1, 2))
        return out


class SpectrumHead(nn.Module):
    """Predicts magnitude and phase of a short-time spectrum and inverts it to hop x frames samples.

    State dict: `out.weight` (n_fft + 2, dim), `out.bias`. The spectrum is inverted in float32 whatever the weights' type.
    """

    def __init__(self, dim: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, n_fft + 2)
        self._n_fft, self._hop = n_fft, hop

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, frames, dim) to (B, 1, frames x hop)."""
        return spectrum_to_signal(self.out(x), self._n_fft, self._hop)


def spectrum_to_signal(spectrum: Tensor, n_fft: int, hop: int) -> Tensor:
    """Invert predicted log-magnitudes and phases, magnitudes limited to 100, with a periodic Hann window.

    Overlapping frames are added and divided by the sum of squared windows; (n_fft - hop) // 2 samples are cut from both
    ends, so that a clip has as many samples as its frames cover ("same" padding of the official class).

    Args:
        spectrum: (B, frames, n_fft + 2), the first half log-magnitudes, the second phases.
        n_fft: Window and transform length.
        hop: Samples between frames.

    Returns:
        (B, 1, frames x hop) float32.
    """
    size, phase = spectrum.float().transpose(1, 2).chunk(2, dim=1)
    values = torch.polar(size.exp().clamp(max=100.0), phase)
    window = torch.hann_window(n_fft, device=values.device)
    frames = torch.fft.irfft(values, n_fft, dim=1) * window[:, None]
    count = frames.shape[-1]
    squares = window.square()[None, :, None].expand(1, -1, count)
    cut = (n_fft - hop) // 2
    shape: dict[str, Any] = {
        "output_size": (1, (count - 1) * hop + n_fft),
        "kernel_size": (1, n_fft),
        "stride": (1, hop),
    }
    signal = F.fold(frames, **shape)[:, :, 0] / F.fold(squares, **shape)[:, :, 0].clamp_min(1e-11)
    return signal[..., cut : cut + count * hop]
