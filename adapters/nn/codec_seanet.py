"""The convolutional encoder of EnCodec (SEANet), under its official key names, for codecs whose checkpoints carry one."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedConv1d(nn.Module):
    """A convolution over a signal extended by reflection, so that T samples give ceil(T / stride) frames.

    State dict: `conv.conv.weight`, `conv.conv.bias`, with the weight norm folded (`checkpoint.weight_norm`).
    Causal: all of kernel - stride goes to the left; otherwise the left side gets the larger half.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, *, causal: bool = False
    ) -> None:
        super().__init__()
        inner = nn.Conv1d(channels, out, kernel, stride, dilation=dilation)
        self.conv = nn.ModuleDict({"conv": inner})
        self._stride, self._causal = stride, causal
        self._span = (kernel - 1) * dilation + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, out, ceil(T / stride))."""
        total = self._span - self._stride
        right = 0 if self._causal else total // 2
        extra = -x.shape[-1] % self._stride
        x = reflect(x, total - right, right + extra)
        y: Tensor = self.conv["conv"](x)
        return y


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Mirror the ends of (B, C, T); a signal too short to mirror is lengthened by zeros first, and cut again."""
    short = max(left, right) - x.shape[-1] + 1
    if short <= 0:
        return F.pad(x, (left, right), mode="reflect")
    padded = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - short]


class _Residual(nn.Module):
    def __init__(self, width: int, compress: int, dilation: int, *, causal: bool) -> None:
        super().__init__()
        narrow = width // compress
        self.block = nn.Sequential(
            nn.ELU(),
            PaddedConv1d(width, narrow, 3, dilation=dilation, causal=causal),
            nn.ELU(),
            PaddedConv1d(narrow, width, 1, causal=causal),
        )
        self.shortcut = PaddedConv1d(width, width, 1, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


class Recurrent(nn.Module):
    """An LSTM over time with a skip around it; one that looks both ways doubles the width, and skips twice.

    State dict: `lstm.*`.
    """

    def __init__(self, width: int, layers: int = 2, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T), or (B, 2C, T) when it looks both ways."""
        out = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        y: Tensor = out + (x.repeat(1, 2, 1) if self.lstm.bidirectional else x)
        return y


class SeanetEncoder(nn.Module):
    """EnCodec's encoder (Défossez et al. 2022), as WavTokenizer and HH-Codec set it up.

    State dict: `model.i.*` with i counted as in the official `nn.Sequential`.

    Args:
        filters: Channels after the first convolution; doubled by each stride.
        dimension: Channels of the latents.
        ratios: Strides in the order of the decoder: applied last to first.
        causal: Whether convolutions look back only.
        lstm: Layers of the LSTM before the last convolution.
        both_ways: Whether the LSTM looks both ways.
        residual: Residual units before each stride.
        compress: Their bottleneck.
    """

    def __init__(
        self,
        filters: int,
        dimension: int,
        ratios: Sequence[int],
        *,
        causal: bool = False,
        lstm: int = 2,
        both_ways: bool = False,
        residual: int = 1,
        compress: int = 2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [PaddedConv1d(1, filters, 7, causal=causal)]
        width = filters
        for stride in reversed(ratios):
            layers += [_Residual(width, compress, 2**unit, causal=causal) for unit in range(residual)]
            layers += [nn.ELU(), PaddedConv1d(width, 2 * width, 2 * stride, stride, causal=causal)]
            width *= 2
        if lstm:
            layers.append(Recurrent(width, lstm, bidirectional=both_ways))
            width *= 2 if both_ways else 1
        layers += [nn.ELU(), PaddedConv1d(width, dimension, 7, causal=causal)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to (B, dimension, ceil(T / product of the strides))."""
        y: Tensor = self.model(x)
        return y
