"""Whisper's layers (Radford et al. 2022, arXiv 2212.04356) around a codec: encoder, decoder and adapters of XY-Tokenizer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(time: int, width: int, device: torch.device) -> Tensor:
    """Return Whisper's positions (time, width): sines of width / 2 frequencies, then their cosines."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=device))
    angle = torch.arange(time, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        y: Tensor = self.out_proj(mixed)
        return y


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = _Attention(width, heads)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return y


class WhisperStack(nn.Module):
    """Positions, layers and a last norm, between linear maps where the widths differ.

    State dict: `proj.*`, `layers.i.*`, `layer_norm.*`, `out_proj.*`.

    Args:
        width: Of the layers.
        heads: Of their attention.
        hidden: Inside their feed-forward parts.
        layers: How many.
        channels: Of the input; None: `width`.
        out: Of the output; None: `width`.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, layers: int, channels: int | None = None, out: int | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Identity() if channels in {None, width} else nn.Linear(channels or width, width)
        self.layers = nn.ModuleList(_Layer(width, heads, hidden) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.out_proj = nn.Identity() if out in {None, width} else nn.Linear(width, out or width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, channels) to (B, T, out); every place sees every other."""
        x = self.proj(x)
        x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.out_proj(self.layer_norm(x))
        return y


class WhisperEncoder(WhisperStack):
    """A stack behind two convolutions over a mel spectrogram, which halve its rate.

    State dict: that of the stack, `conv1.*`, `conv2.*`.
    """

    def __init__(self, mels: int, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__(width, heads, hidden, layers)
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def encode(self, mel: Tensor, frames: int) -> Tensor:
        """Map (B, mels, T) to (B, frames, width); frames beyond are known to the convolutions only."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel))))
        y: Tensor = self(x[..., :frames].transpose(1, 2))
        return y


class WhisperDecoder(WhisperStack):
    """A stack before two transposed convolutions, which double the rate, to something like a mel spectrogram.

    State dict: that of the stack, `deconv1.*`, `deconv2.*`. Both convolutions are followed by GELU, and what they add to the
    end is cut away, as in the official code.
    """

    def __init__(self, mels: int, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__(width, heads, hidden, layers)
        self.deconv1 = nn.ConvTranspose1d(width, width, 3, stride=2)
        self.deconv2 = nn.ConvTranspose1d(width, mels, 3)

    def decode(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to (B, mels, 2T)."""
        y = F.gelu(self.deconv2(F.gelu(self.deconv1(self(x).transpose(1, 2)))))
        return y[..., : 2 * x.shape[1]]
