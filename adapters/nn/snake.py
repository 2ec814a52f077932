"""Snake activations without aliasing, and the convolutions around them, as BigCodec and BigVGAN use them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TAPS = 12


def kaiser_sinc(cutoff: float = 0.25, half_width: float = 0.3, taps: int = _TAPS) -> Tensor:
    """Return a low-pass filter (taps,), an even number of them, that sums to 1.

    Args:
        cutoff: Of the filter, in cycles a sample.
        half_width: Of its transition, in cycles a sample.
        taps: Length.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(0.0, attenuation - 21) ** 0.4 + 0.07886 * max(0.0, attenuation - 21)
    window = torch.kaiser_window(taps, periodic=False, beta=beta)
    values = window * torch.sinc(2 * cutoff * (torch.arange(taps) - (taps - 1) / 2))
    return values / values.sum()


class SnakeBeta(nn.Module):
    """x + sin^2(x e^alpha) / (e^beta + 1e-9), alpha and beta by channel. Lee et al., BigVGAN, 2023.

    State dict: `alpha` (C,), `beta` (C,), both logarithms.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T)."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(x * alpha).square() / (beta + 1e-9)


class AliasFreeSnake(nn.Module):
    """SnakeBeta at twice the rate, between an interpolation and a low-pass filter of 12 taps each.

    State dict: `act.alpha`, `act.beta`. The filters, which checkpoints also store, are computed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.register_buffer("_low_pass", kaiser_sinc()[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T); ends are repeated."""
        channels = x.shape[1]
        low_pass: Tensor = self._low_pass.expand(channels, 1, -1)  # type: ignore[operator]
        fast = F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), 2 * low_pass, stride=2, groups=channels)
        fast = F.pad(self.act(fast[..., 15:-15]), (5, 6), mode="replicate")
        return F.conv1d(fast, low_pass, stride=2, groups=channels)


class SnakeResidual(nn.Module):
    """Two activated convolutions, 7 wide with a dilation and 1 wide, added to their input.

    State dict: `block.0.act.*`, `block.1.*`, `block.2.act.*`, `block.3.*`, weight norm folded.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            AliasFreeSnake(channels),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            AliasFreeSnake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T)."""
        y: Tensor = x + self.block(x)
        return y


class SnakeStage(nn.Module):
    """Residual units and a strided convolution: down after the units, or up before them.

    State dict: `block.i.*`.

    Args:
        channels: Of the input.
        out: Of the output.
        stride: Of the convolution, whose kernel is twice as long.
        dilations: One a unit.
        up: Whether the stage raises the rate.
    """

    def __init__(self, channels: int, out: int, stride: int, dilations: Sequence[int], *, up: bool) -> None:
        super().__init__()
        units: list[nn.Module] = [SnakeResidual(out if up else channels, dilation) for dilation in dilations]
        odd = stride % 2
        resample: list[nn.Module] = [AliasFreeSnake(channels)]
        if up:
            conv: nn.Module = nn.ConvTranspose1d(
                channels, out, 2 * stride, stride, padding=stride // 2 + odd, output_padding=odd
            )
        else:
            conv = nn.Conv1d(channels, out, 2 * stride, stride, padding=stride // 2 + odd)
        resample.append(conv)
        self.block = nn.Sequential(*(resample + units if up else units + resample))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, T) to (B, out, T / stride) or (B, out, T x stride)."""
        y: Tensor = self.block(x)
        return y
