"""The encoder of S3Tokenizer v2: log-mel, convolutions, attention with a memory block, finite scalar quantization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64
LEVELS, DIGITS = 3, 8
SHRINK = 0.9990000128746033
"""So that tanh never rounds beyond a level."""


class SpeechEncoder(nn.Module):
    """Log-mel frames (B, n_mels, F) to tokens (B, ceil(ceil(F / 2) / 2)) of 3^8 values, least significant digit first.

    Args:
        n_mels: Bins of the input.
        n_audio_state: Width.
        n_audio_head: Attention heads; their width is 64 in the rotary table whatever it is in the projections.
        n_audio_layer: Blocks.
    """

    def __init__(
        self, *, n_mels: int = 128, n_audio_state: int = 1280, n_audio_head: int = 20, n_audio_layer: int = 6
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(n_mels, n_audio_state, n_audio_head, n_audio_layer)
        self.quantizer = nn.Module()
        self.quantizer._codebook = nn.Module()
        self.quantizer._codebook.project_down = nn.Linear(n_audio_state, DIGITS)

    def forward(self, mel: Tensor) -> Tensor:
        """Return the tokens of (B, n_mels, F) frames."""
        return tokens_of(self.projected(mel))

    def projected(self, mel: Tensor) -> Tensor:
        """Return what is quantized: (B, T, 8)."""
        y: Tensor = self.quantizer._codebook.project_down(self.encoder(mel))  # type: ignore[union-attr,operator]
        return y


def tokens_of(projected: Tensor) -> Tensor:
    """Round (B, T, 8) to digits 0, 1, 2 and read them as one number."""
    digits = (projected.float().tanh() * SHRINK).round() + 1
    return (digits.long() * LEVELS ** torch.arange(DIGITS, device=digits.device)).sum(-1)


class _Encoder(nn.Module):
    def __init__(self, bins: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bins, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        angles = rotary_angles(x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, angles)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), angles)
        y: Tensor = x + self.mlp(self.mlp_ln(x))
        return y


class _Attention(nn.Module):
    """Attention over time beside a depthwise convolution of the values (FSMN), whose result by-passes the projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, 31, padding=15, groups=width, bias=False)
        self._heads = heads

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        value = self.value(x)
        memory = self.fsmn_block(value.transpose(1, 2)).transpose(1, 2) + value
        q, k, v = (
            part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(x), value)
        )
        mixed = F.scaled_dot_product_attention(rotated(q, angles), rotated(k, angles), v)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2)) + memory
        return y


def rotary_angles(length: int, device: torch.device) -> Tensor:
    """Return the angles of positions 0 to length-1, both halves alike: (length, 64)."""
    frequencies = 1.0 / (10_000.0 ** (torch.arange(0, HEAD, 2, device=device).float() / HEAD))
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
    return torch.cat([angles, angles], dim=-1)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Turn (B, heads, T, 64) by position, the second half being the imaginary part of the first."""
    low, high = x.chunk(2, dim=-1)
    return (x * angles.cos() + torch.cat([-high, low], dim=-1) * angles.sin()).to(x.dtype)
