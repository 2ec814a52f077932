"""SEANet with LSTMs and residual Euclidean codebooks: the network of SpeechTokenizer and DM-Codec, in their key names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpeechCodec(nn.Module):
    """Encoder, residual quantizer and decoder: (B, 1, T) in [-1, 1] to (B, K, ceil(T / hop)) indices and back.

    Args:
        n_filters: Channels after the first convolution; they double with every stride.
        strides: Of the decoder; the encoder takes them in reverse.
        dimension: Width of the latents and of every codebook.
        lstm_layers: Layers of the LSTMs; the encoder's runs both ways when `bidirectional`.
        activation: `ELU`, or `Snake` with a learned frequency a channel.
        codebook_size: Entries of each codebook.
        n_q: Codebooks.
    """

    def __init__(
        self,
        *,
        n_filters: int = 64,
        strides: Sequence[int] = (8, 5, 4, 2),
        dimension: int = 1024,
        bidirectional: bool = True,
        dilation_base: int = 2,
        residual_kernel_size: int = 3,
        n_residual_layers: int = 1,
        lstm_layers: int = 2,
        activation: str = "ELU",
        codebook_size: int = 1024,
        n_q: int = 8,
    ) -> None:
        super().__init__()
        dilations = [dilation_base**j for j in range(n_residual_layers)]

        def residuals(width: int) -> list[nn.Module]:
            return [ResidualBlock(width, residual_kernel_size, dilation, activation) for dilation in dilations]

        width = n_filters
        down: list[nn.Module] = [Conv(1, width, 7)]
        for stride in reversed(strides):
            down += [
                *residuals(width),
                activation_of(activation, width),
                Conv(width, 2 * width, 2 * stride, stride=stride),
            ]
            width *= 2
        down.append(Recurrent(width, lstm_layers, bidirectional))
        wide = 2 * width if bidirectional else width
        down += [activation_of(activation, wide), Conv(wide, dimension, 7)]
        up: list[nn.Module] = [Conv(dimension, width, 7), Recurrent(width, lstm_layers, False)]
        for stride in strides:
            up += [activation_of(activation, width), ConvTransposed(width, width // 2, stride), *residuals(width // 2)]
            width //= 2
        up += [activation_of(activation, width), Conv(width, 1, 7)]
        self.encoder = _Model(down)
        self.quantizer = ResidualQuantizer(n_q, codebook_size, dimension)
        self.decoder = _Model(up)

    def encode(self, x: Tensor, count: int | None = None) -> Tensor:
        """Map (B, 1, T) to the indices (B, count, T') of the first `count` codebooks (None: all)."""
        return self.quantizer.encode(self.encoder(x), count)

    def decode(self, indices: Tensor) -> Tensor:
        """Map the indices (B, K', T') of the first K' codebooks to (B, 1, T' x hop)."""
        signal: Tensor = self.decoder(self.quantizer.decode(indices))
        return signal


class _Model(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class _Inner(nn.Module):
    """Holds one layer under one name, because the published keys nest twice."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(self._name)(x)
        return y


class Conv(nn.Module):
    """Convolution whose output has ceil(T / stride) samples: reflected at both ends, the left pad the larger."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = _Inner("conv", nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation))
        self._span, self._stride = (kernel - 1) * dilation + 1, stride

    def forward(self, x: Tensor) -> Tensor:
        total, length = self._span - self._stride, x.shape[-1]
        frames = math.ceil((length - self._span + total) / self._stride) + 1
        extra = (frames - 1) * self._stride + self._span - total - length
        y: Tensor = self.conv(reflected(x, total - total // 2, total // 2 + extra))
        return y


class ConvTransposed(nn.Module):
    """Transposed convolution that gives T x stride samples; of an odd surplus the left end loses more."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convtr = _Inner("convtr", nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride))
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convtr(x)
        right = self._stride // 2
        return y[..., self._stride - right : y.shape[-1] - right]


class ResidualBlock(nn.Module):
    """Two convolutions through half the width beside a 1x1 convolution."""

    def __init__(self, width: int, kernel: int, dilation: int, activation: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            activation_of(activation, width),
            Conv(width, width // 2, kernel, dilation=dilation),
            activation_of(activation, width // 2),
            Conv(width // 2, width, 1),
        )
        self.shortcut = Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


class Recurrent(nn.Module):
    """LSTM over time with a skip; both directions see the input twice, side by side."""

    def __init__(self, width: int, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        y: Tensor = self.lstm(steps)[0]
        return (y + steps.repeat(1, 1, y.shape[-1] // steps.shape[-1])).permute(1, 2, 0)


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, one alpha a channel (arXiv 2006.08195)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()


class ResidualQuantizer(nn.Module):
    """Codebooks of which each codes what those before it left, by squared Euclidean distance; the first of equals wins."""

    def __init__(self, count: int, size: int, dimension: int) -> None:
        super().__init__()
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(_Layer(size, dimension) for _ in range(count))

    def encode(self, latents: Tensor, count: int | None = None) -> Tensor:
        """Map (B, D, T) to (B, count, T) indices."""
        residual, found = latents.transpose(1, 2), []
        for table in self._tables()[:count]:
            flat = residual.reshape(-1, residual.shape[-1])
            # As the published code writes it: another order of the same terms may round a tie the other way.
            distance = (
                flat.square().sum(1, keepdim=True) - 2 * flat @ table.t() + table.t().square().sum(0, keepdim=True)
            )
            indices = (-distance).argmax(-1).reshape(residual.shape[:-1])
            found.append(indices)
            residual = residual - F.embedding(indices, table)
        return torch.stack(found, dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map the indices (B, K', T) of the first K' codebooks to (B, D, T)."""
        tables = self._tables()
        parts = [F.embedding(row, tables[k]) for k, row in enumerate(indices.unbind(1))]
        return torch.stack(parts).sum(0).transpose(1, 2)

    def _tables(self) -> list[Tensor]:
        layers = self.vq.layers
        assert isinstance(layers, nn.ModuleList)
        return [layer.get_buffer("_codebook.embed") for layer in layers]


class _Layer(nn.Module):
    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("embed", torch.empty(size, dimension))


def activation_of(name: str, width: int) -> nn.Module:
    """Return the activation a configuration names: ELU or Snake.

    Raises:
        ValueError: Another name.
    """
    if name not in {"ELU", "Snake"}:
        raise ValueError(f"activation {name!r} is neither ELU nor Snake")
    return nn.ELU() if name == "ELU" else Snake(width)


def reflected(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect (B, C, T) at both ends; a signal shorter than the pad is first lengthened by zeros, which are cut again."""
    short = max(0, max(left, right) - x.shape[-1] + 1)
    padded = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - short]
