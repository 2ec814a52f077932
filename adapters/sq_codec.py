"""SQ-Codec (Yang et al. 2024, arXiv 2406.02328, SimpleSpeech): 36 ternary channels, 50 frames a second of 16 kHz speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.errors import UsageError
from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.checkpoint import library, weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import GridNeighbours
from .nn.network import load_network
from .nn.quantize import no_single_search

_DILATIONS = (1, 3, 5, 7, 9)


class _Conv(nn.Conv1d):
    """A convolution that pads with zeros: all on the left when causal, else half on either side."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, *, causal: bool = False
    ) -> None:
        reach = dilation * (kernel - 1)
        super().__init__(channels, out, kernel, stride, dilation=dilation, padding=0 if causal else reach // 2)
        self._past = reach if causal else 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self._past, 0)))


class _ConvTranspose(nn.ConvTranspose1d):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, *, causal: bool) -> None:
        super().__init__(channels, out, kernel, stride, padding=0 if causal else (kernel - stride) // 2)
        self._cut = stride if causal else 0

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = super().forward(x, output_size)
        return y[..., : y.shape[-1] - self._cut]


class _Residual(nn.Module):
    def __init__(self, width: int, kernel: int, dilation: int, *, causal: bool) -> None:
        super().__init__()
        self.conv1 = _Conv(width, width, kernel, dilation=dilation, causal=causal)
        self.activation1 = nn.PReLU()
        self.conv2 = _Conv(width, width, 1, causal=causal)
        self.activation2 = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.activation2(self.conv2(self.activation1(self.conv1(x))))
        return y


def _residuals(width: int, kernel: int, *, causal: bool) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width, kernel, dilation, causal=causal) for dilation in _DILATIONS))


class _Down(nn.Module):
    def __init__(self, width: int, stride: int, kernel: int, inner: int, *, causal: bool) -> None:
        super().__init__()
        self.convs = _residuals(width, inner, causal=causal)
        self.down_conv = nn.ModuleDict(
            {"layer": _Conv(width, 2 * width, kernel, stride, causal=causal), "activation": nn.PReLU()}
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_conv["activation"](self.down_conv["layer"](self.convs(x)))
        return y


class _Up(nn.Module):
    def __init__(self, width: int, stride: int, kernel: int, inner: int, *, causal: bool) -> None:
        super().__init__()
        self.up_conv = nn.ModuleDict({"layer": _ConvTranspose(width, width // 2, kernel, stride, causal=causal)})
        self.convs = _residuals(width // 2, inner, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(self.up_conv["layer"](x))
        return y


class _Pooled(nn.Module):
    """A convolution beside a change of rate by a whole number: averaged after it, or repeated before it."""

    def __init__(self, width: int, kernel: int, factor: int, *, up: bool, causal: bool) -> None:
        super().__init__()
        self.conv = _Conv(width, width, kernel, causal=causal)
        self.activation = nn.PReLU()
        self._factor, self._up = factor, up

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat_interleave(self._factor, dim=-1) if self._up else x
        y: Tensor = self.activation(self.conv(x))
        return y if self._up else F.avg_pool1d(y, self._factor)


class SqCodec(nn.Module):
    """Strided convolutions and their mirror image around channels that are rounded to -1, 0 and 1.

    Args:
        width: Channels of the first convolution; doubled by each stride.
        channels: Of the latents.
        pool: Samples that are averaged after the first convolutions.
        strides: Of the encoder, first to last.
        kernels: Of the strided convolutions.
        up_strides: Of the decoder, first to last.
        up_kernels: Of its transposed convolutions.
        kernel: Of the first and last convolutions.
        ahead: Of the convolution after the latents, which looks both ways.
        inner: Of the residual convolutions.
        causal: Whether all the others look back only.
        group: Channels that make one token.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        pool: int,
        strides: Sequence[int],
        kernels: Sequence[int],
        up_strides: Sequence[int],
        up_kernels: Sequence[int],
        kernel: int,
        ahead: int,
        inner: int,
        *,
        causal: bool,
        group: int = 9,
    ) -> None:
        super().__init__()
        down: list[nn.Module] = [_Conv(1, width, kernel, causal=causal)]
        end: list[nn.Module] = [_Conv(width, 1, kernel, causal=causal)]
        if pool > 1:
            down.append(_Pooled(width, kernel, pool, up=False, causal=causal))
            end.insert(0, _Pooled(width, kernel, pool, up=True, causal=causal))
        for stride, size in zip(strides, kernels, strict=True):
            down.append(_Down(width, stride, size, inner, causal=causal))
            width *= 2
        down.append(_Conv(width, channels, kernel, causal=causal))
        up: list[nn.Module] = [_Conv(channels, width, ahead)]
        for stride, size in zip(up_strides, up_kernels, strict=True):
            up.append(_Up(width, stride, size, inner, causal=causal))
            width //= 2
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up, *end)
        self._group = group

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to what is rounded, (B, channels, L) in (-1, 1)."""
        return torch.tanh(self.encoder(x))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to tokens (B, channels / group, L); the first channel of a group varies fastest."""
        digits = self.latents(x).round().long() + 1
        groups = torch.unflatten(digits, 1, (-1, self._group))
        return (groups * self._powers(x.device)[:, None]).sum(2)

    def decode(self, indices: Tensor) -> Tensor:
        """Map tokens (B, channels / group, L) to (B, 1, T), not clipped."""
        digits = indices[:, :, None] // self._powers(indices.device)[:, None] % 3 - 1
        y: Tensor = self.decoder(digits.flatten(1, 2).to(next(self.parameters()).dtype))
        return y

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near a token: others whose channels are few steps away."""
        del codebook
        return GridNeighbours((3,) * self._group)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: channels are rounded, no table is searched."""
        del x
        raise no_single_search(codebook)

    def _powers(self, device: torch.device) -> Tensor:
        powers: Tensor = 3 ** torch.arange(self._group, device=device)
        return powers


def shape_of(config: Path, card: Card) -> dict[str, Any]:
    """Read the arguments of `SqCodec` from the published configuration file.

    Raises:
        MissingExtra: PyYAML is not installed.
        UsageError: It is no configuration of this codec, or not of the geometry the card declares.
    """
    (load,) = library("yaml", ["safe_load"], card.name, "hf")
    found: Any = load(config.read_text())
    try:
        told = found["generator"]["config"]
        shape = {
            "width": told["init_channel"],
            "channels": told["latent_hidden_dim"],
            "pool": told["num_samples"],
            "strides": told["downsample_factors"],
            "kernels": told["downsample_kernel_sizes"],
            "up_strides": told["upsample_factors"],
            "up_kernels": told["upsample_kernel_sizes"],
            "kernel": told["default_kernel_size"],
            "ahead": told["delay_kernel_size"],
            "inner": told["res_kernel_size"],
            "causal": told["causal"],
        }
        bands, rate = told["num_bands"], told["sample_rate"]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{config} is no configuration of SQ-Codec: {error} is missing") from error
    hop = shape["pool"]
    for stride in shape["strides"]:
        hop *= stride
    there = (bands, rate, hop, shape["channels"])
    wanted = (1, card.spec.sample_rate, card.spec.downsample[0], 9 * len(card.spec.codebook_size))
    if there != wanted:
        names = "bands, sample rate, samples a frame, channels"
        raise UsageError(f"{config} has {names} {there} where {card.name} has {wanted}")
    return shape


def sq_codec(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the published checkpoint.

    Args:
        card: Its geometry is compared with the configuration.
        weights: Role `model` -> the checkpoint; role `config` -> the `config.yaml` beside it.

    Raises:
        UsageError: The configuration is of another codec.
        WeightsRefused: The file does not fit.
    """
    shape = shape_of(weights["config"], card)
    network = load_network(card, weights, lambda: SqCodec(**shape), inside=("codec_model",), layouts=[weight_norm])
    return CodebookTokenizer(network, network.module)
