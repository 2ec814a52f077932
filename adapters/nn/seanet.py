"""SEANet, the convolutional encoder and decoder of EnCodec (Défossez et al. 2022, arXiv 2210.13438), in its key names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[int], nn.Module]
"""Builds the activation of a signal of so many channels."""


def elu(channels: int) -> nn.Module:
    """Return EnCodec's activation, the same for every channel."""
    del channels
    return nn.ELU()


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


class PaddedConvTranspose1d(nn.Module):
    """A transposed convolution of twice its stride that gives T x stride samples; of an odd surplus the left loses more.

    State dict: `convtr.convtr.weight`, `convtr.convtr.bias`, weight norm folded.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.convtr = nn.ModuleDict({"convtr": nn.ConvTranspose1d(channels, out, 2 * stride, stride)})
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, out, T x stride)."""
        y: Tensor = self.convtr["convtr"](x)
        right = self._stride // 2
        return y[..., self._stride - right : y.shape[-1] - right]


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Mirror the ends of (B, C, T); a signal too short to mirror is lengthened by zeros first, and cut again."""
    short = max(left, right) - x.shape[-1] + 1
    if short <= 0:
        return F.pad(x, (left, right), mode="reflect")
    padded = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - short]


class ResidualUnit(nn.Module):
    """Two convolutions through half the width beside a 1x1 convolution.

    State dict: `block.1.*`, `block.3.*`, `shortcut.*`, and `block.0.*` and `block.2.*` where the activation has any.
    """

    def __init__(
        self, width: int, dilation: int = 1, *, kernel: int = 3, causal: bool = False, activation: Activation = elu
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            activation(width),
            PaddedConv1d(width, width // 2, kernel, dilation=dilation, causal=causal),
            activation(width // 2),
            PaddedConv1d(width // 2, width, 1, causal=causal),
        )
        self.shortcut = PaddedConv1d(width, width, 1, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, T) to (B, width, T)."""
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
    """EnCodec's encoder, as WavTokenizer, HH-Codec and SpeechTokenizer set it up.

    State dict: `model.i.*` with i counted as in the official `nn.Sequential`.

    Args:
        filters: Channels after the first convolution; doubled by each stride.
        dimension: Channels of the latents.
        ratios: Strides in the order of the decoder: applied last to first.
        causal: Whether convolutions look back only.
        lstm: Layers of the LSTM before the last convolution.
        both_ways: Whether the LSTM looks both ways.
        kernel: Of the residual units.
        dilations: Of the residual units before each stride.
        activation: In front of every convolution but the first.
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
        kernel: int = 3,
        dilations: Sequence[int] = (1,),
        activation: Activation = elu,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [PaddedConv1d(1, filters, 7, causal=causal)]
        width = filters
        for stride in reversed(ratios):
            layers += [
                ResidualUnit(width, dilation, kernel=kernel, causal=causal, activation=activation)
                for dilation in dilations
            ]
            layers += [activation(width), PaddedConv1d(width, 2 * width, 2 * stride, stride, causal=causal)]
            width *= 2
        layers.append(Recurrent(width, lstm, bidirectional=both_ways))
        width *= 2 if both_ways else 1
        layers += [activation(width), PaddedConv1d(width, dimension, 7, causal=causal)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to (B, dimension, ceil(T / product of the strides))."""
        y: Tensor = self.model(x)
        return y


class SeanetDecoder(nn.Module):
    """EnCodec's decoder, not causal: the encoder backwards, its LSTM looking one way.

    State dict: `model.i.*` with i counted as in the official `nn.Sequential`. Arguments are those of `SeanetEncoder`.
    """

    def __init__(
        self,
        filters: int,
        dimension: int,
        ratios: Sequence[int],
        *,
        lstm: int = 2,
        kernel: int = 3,
        dilations: Sequence[int] = (1,),
        activation: Activation = elu,
    ) -> None:
        super().__init__()
        width = filters * 2 ** len(ratios)
        layers: list[nn.Module] = [PaddedConv1d(dimension, width, 7), Recurrent(width, lstm)]
        for stride in ratios:
            layers += [activation(width), PaddedConvTranspose1d(width, width // 2, stride)]
            width //= 2
            layers += [ResidualUnit(width, dilation, kernel=kernel, activation=activation) for dilation in dilations]
        layers += [activation(width), PaddedConv1d(width, 1, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dimension, L) to (B, 1, L x product of the strides)."""
        y: Tensor = self.model(x)
        return y
