"""MAGVIT-v2's convolutional autoencoder in its open re-implementation, with group-wise lookup-free quantization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.types import Neighbours

from .bits import bits_of, index_of
from .neighbours import BitNeighbours


def _norm(width: int, *, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6, affine=affine)


class _ResBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.norm2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return out


def _blocks(width_in: int, width_out: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(_ResBlock(width_in if i == 0 else width_out, width_out) for i in range(count))


class _DepthToSpace(nn.Module):
    """3x3 convolution to four times the channels, whose outer two axes become the 2x2 block (not PixelShuffle's order)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        grid: Tensor = self.conv1(x).view(b, 2, 2, c, h, w).permute(0, 3, 4, 1, 5, 2)
        return grid.reshape(b, c, 2 * h, 2 * w)


class _AdaptiveNorm(nn.Module):
    """Group normalisation whose scale and shift come from the deviation (unbiased) and mean of the code over its grid."""

    def __init__(self, code_width: int, width: int) -> None:
        super().__init__()
        self.norm = _norm(width, affine=False)
        self.gamma = nn.Linear(code_width, width)
        self.beta = nn.Linear(code_width, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        flat = code.flatten(2)
        scale = self.gamma((flat.var(dim=-1) + 1e-6).sqrt())[..., None, None]
        shift = self.beta(flat.mean(dim=-1))[..., None, None]
        out: Tensor = scale * self.norm(x) + shift
        return out


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, z_channels, h, w); residual blocks, strided convolutions, no attention."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block = _blocks(ch if i == 0 else widths[i - 1], width, num_res_blocks)
            if i < len(widths) - 1:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(level)
        self.mid_block = _blocks(widths[-1], widths[-1], num_res_blocks)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for block in level.block:  # type: ignore[union-attr]
                h = block(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        for block in self.mid_block:
            h = block(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Decoder(nn.Module):
    """(B, z_channels, h, w) in {-1, 1} -> (B, 3, H, W); `noise` channels of random numbers may enter beside the code."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, noise: int = 0) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self._noise = noise
        self.conv_in = nn.Conv2d(z_channels + noise, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], num_res_blocks)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block = _blocks(widths[min(i + 1, len(widths) - 1)], width, num_res_blocks)
            if i:
                level.upsample = _DepthToSpace(width)
            self.up.append(level)
        self.adaptive = nn.ModuleList(
            _AdaptiveNorm(z_channels, widths[min(i + 1, len(widths) - 1)]) for i in range(len(widths))
        )
        self.norm_out = _norm(ch * ch_mult[0])
        self.conv_out = nn.Conv2d(ch * ch_mult[0], 3, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        h = code
        if self._noise:
            shape = (code.shape[0], self._noise, *code.shape[2:])
            h = torch.cat([code, torch.randn(shape, device=code.device, dtype=code.dtype)], dim=1)
        h = self.conv_in(h)
        for block in self.mid_block:
            h = block(h)
        for i in reversed(range(len(self.up))):
            h = self.adaptive[i](h, code)
            for block in self.up[i].block:  # type: ignore[union-attr]
                h = block(h)
            if i:
                h = self.up[i].upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Magvit2(nn.Module):
    """The autoencoder with sign quantization: each of `num_codebooks` groups of channels is one binary index.

    References: MAGVIT-v2 (arXiv:2310.05737); Open-MAGVIT2, TencentARC/SEED-Voken; WeTok, zhuangshaobin/WeTok.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        num_codebooks: int = 1,
        noise: int = 0,
    ) -> None:
        super().__init__()
        self._groups = num_codebooks
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels, noise)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to what is quantized: (B, z_channels, h, w)."""
        out: Tensor = self.encoder(x)
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return the words of bits near another; all groups have the same."""
        del codebook
        return BitNeighbours(self.encoder.conv_out.out_channels // self._groups)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the channels whose signs one group's index is, (B, h, w, bits)."""
        return self.features(x).chunk(self._groups, dim=1)[int(codebook)].movedim(1, -1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, num_codebooks, h, w); channel 0 of a group is its lowest bit."""
        signs = self.features(x) > 0
        return index_of(torch.unflatten(signs, 1, (self._groups, -1)), dim=2, low_first=True)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, num_codebooks, h, w) to (B, 3, H, W), nominally in [-1, 1]."""
        width = self.decoder.conv_in.in_channels - self.decoder._noise
        bits = bits_of(indices, width // self._groups, dim=2, low_first=True)
        code = bits.flatten(1, 2).to(self.decoder.conv_in.weight.dtype) * 2 - 1
        out: Tensor = self.decoder(code)
        return out
