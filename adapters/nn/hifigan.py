"""HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) that looks back only, and AudioDec's causal convolutions it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Module):
    """A convolution with all its zero padding on the left: T samples give ceil(T / stride) frames.

    State dict: `conv.weight`, `conv.bias`.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out, kernel, stride, dilation=dilation, groups=groups, bias=bias)
        self._past = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, out, ceil(T / stride))."""
        y: Tensor = self.conv(F.pad(x, (self._past, 0)))
        return y


class CausalConvTranspose1d(nn.Module):
    """A transposed convolution of twice its stride that sees the frame before; the first one is taken twice.

    State dict: `deconv.weight`, `deconv.bias`.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose1d(channels, out, 2 * stride, stride)
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, out, T x stride)."""
        y: Tensor = self.deconv(F.pad(x, (1, 0), mode="replicate"))
        return y[..., self._stride : -self._stride]


class _Stack(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: Sequence[int], groups: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            CausalConv1d(width, width, kernel, dilation=dilation, groups=groups) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(CausalConv1d(width, width, kernel, groups=groups) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for wide, narrow in zip(self.convs1, self.convs2, strict=True):
            x = x + narrow(F.leaky_relu(wide(F.leaky_relu(x, 0.1)), 0.1))
        return x


class _Fields(nn.Module):
    def __init__(self, width: int, kernels: Sequence[int], dilations: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Stack(width, kernel, dilations, 1) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([block(x) for block in self.blocks]).mean(0)


class _Groups(_Stack):
    def __init__(self, width: int, kernel: int, dilations: Sequence[int], groups: int) -> None:
        super().__init__(width * groups, kernel, dilations, groups)
        self.conv_out = nn.Conv1d(width * groups, width, 1, bias=False)
        self._groups = groups

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(super().forward(x.repeat(1, self._groups, 1)))
        return y


class CausalHifiGan(nn.Module):
    """HiFi-GAN over latents that are first brought to mean 0 and scale 1, as AudioDec uses it.

    State dict: `mean` (channels,), `scale` (channels,), `input_conv.conv.*`, `upsamples.i.deconv.*`, `blocks.i.*`,
    `output_conv.conv.*`, weight norm folded.

    Args:
        channels: Of the latents.
        strides: Upsampling factors; kernels are twice as long.
        width: After the first convolution; halved by each upsampling.
        kernels: Of the stacks after each upsampling, whose mean is taken.
        dilations: Of a stack.
        groups: With one kernel and more than one group, the stacks are groups of one convolution (AudioDec v1 and v2).
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        width: int = 512,
        kernels: Sequence[int] = (11,),
        dilations: Sequence[int] = (1, 3, 5),
        groups: int = 3,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("scale", torch.empty(channels))
        self.input_conv = CausalConv1d(channels, width, 7)
        ups: list[nn.Module] = []
        blocks: list[nn.Module] = []
        for stride in strides:
            ups.append(CausalConvTranspose1d(width, width // 2, stride))
            width //= 2
            grouped = len(kernels) == 1 and groups > 1
            blocks.append(
                _Groups(width, kernels[0], dilations, groups) if grouped else _Fields(width, kernels, dilations)
            )
        self.upsamples, self.blocks = nn.ModuleList(ups), nn.ModuleList(blocks)
        self.output_conv = CausalConv1d(width, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, L) to (B, 1, L x product of the strides) in (-1, 1)."""
        mean: Tensor = self.mean  # type: ignore[assignment]
        scale: Tensor = self.scale  # type: ignore[assignment]
        x = self.input_conv((x - mean[:, None]) / scale[:, None])
        for up, block in zip(self.upsamples, self.blocks, strict=True):
            x = block(up(F.leaky_relu(x, 0.1)))
        y: Tensor = self.output_conv(F.leaky_relu(x, 0.01))
        return torch.tanh(y)
