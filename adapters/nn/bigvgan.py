"""BigVGAN v2 (Lee et al. 2023, arXiv 2206.04658), the vocoder that some codecs end in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .snake import AliasFreeSnake


class _Block(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            return nn.Conv1d(width, width, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations = nn.ModuleList(AliasFreeSnake(width) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.activations[0::2], self.convs1, self.activations[1::2], self.convs2, strict=True)
        for first, wide, second, narrow in pairs:
            x = x + narrow(second(wide(first(x))))
        return x


class BigVgan(nn.Module):
    """Transposed convolutions, each followed by the mean of a few stacks of dilated convolutions with alias-free Snakes.

    State dict: `conv_pre.*`, `ups.i.0.*`, `resblocks.i.*`, `activation_post.act.*`, `conv_post.weight`, weight norm folded.

    Args:
        mels: Channels of the input.
        width: After the first convolution; halved by each upsampling.
        rates: Upsampling factors; kernels are twice as long.
        kernels: Of the stacks.
        dilations: Of each stack's convolutions.
    """

    def __init__(
        self,
        mels: int = 100,
        width: int = 1536,
        rates: Sequence[int] = (4, 4, 2, 2, 2, 2),
        kernels: Sequence[int] = (3, 7, 11),
        dilations: Sequence[int] = (1, 3, 5),
    ) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(mels, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate in rates:
            up = nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, padding=rate // 2)
            self.ups.append(nn.ModuleList([up]))
            width //= 2
            self.resblocks.extend(_Block(width, kernel, dilations) for kernel in kernels)
        self.activation_post = AliasFreeSnake(width)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3, bias=False)
        self._stacks = len(kernels)

    def forward(self, mel: Tensor) -> Tensor:
        """Map (B, mels, T) to (B, 1, T x product of the rates), not clipped."""
        x = self.conv_pre(mel)
        for step, up in enumerate(self.ups):
            x = up[0](x)  # type: ignore[index]
            stacks = self.resblocks[step * self._stacks : (step + 1) * self._stacks]
            x = torch.stack([block(x) for block in stacks]).mean(0)
        y: Tensor = self.conv_post(self.activation_post(x))
        return y
