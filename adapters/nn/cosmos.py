"""The networks of Cosmos Tokenizer: a Haar transform, a residual CNN and its mirror, over images or causally over clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .taming import Downsample, Upsample

# ------------------------------------------------------------------------------------------------------ wavelets


def haar(x: Tensor) -> Tensor:
    """Halve every axis of (B, C, *axes), all even: means and half differences of neighbours, (B, 2^axes * C, *axes / 2).

    The bands come first in the channels. Among them the width varies slowest in images and fastest in clips, as in the
    official code.
    """
    for axis in _order(x.ndim):
        first, second = _split(x, axis, 2).unbind(axis + 1)
        x = torch.cat([first + second, first - second], dim=1) / 2
    return x


def inverse_haar(x: Tensor) -> Tensor:
    """Undo `haar`: (B, 2^axes * C, *axes) to (B, C, *axes * 2)."""
    for axis in reversed(_order(x.ndim)):
        mean, half = x.chunk(2, dim=1)
        x = torch.stack([mean + half, mean - half], dim=axis + 1).flatten(axis, axis + 1)
    return x


def _split(x: Tensor, axis: int, size: int) -> Tensor:
    """Cut an axis into (-1, size)."""
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _order(ndim: int) -> tuple[int, ...]:
    return (2, 3) if ndim == 4 else (4, 3, 2)


# -------------------------------------------------------------------------------------------------------- layers


class _CausalConv(nn.Module):
    """A convolution over clips that sees no later frame: in time the first frame is repeated, in space zeros are put."""

    def __init__(
        self, inside: int, outside: int, time: int = 1, space: int = 1, stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        margin = space // 2 if stride[1] == 1 else 0
        steps = (stride[0], stride[1], stride[1])
        self.conv3d = nn.Conv3d(inside, outside, (time, space, space), stride=steps, padding=(0, margin, margin))
        self._before = time - 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C', T / stride, H', W')."""
        out: Tensor = self.conv3d(_repeat_first(x, self._before))
        return out


def _repeat_first(x: Tensor, count: int) -> Tensor:
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2) if count else x


class _FrameNorm(nn.Module):
    """One group over the channels and pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to the same shape."""
        frames: Tensor = self.norm(x.transpose(1, 2).flatten(0, 1))
        return frames.view(len(x), -1, *frames.shape[1:]).transpose(1, 2)


class _ClipShrink(nn.Module):
    """Halves space, time or both: a strided convolution beside a mean, one axis after the other, then a projection."""

    def __init__(self, channels: int, time: bool, space: bool) -> None:
        super().__init__()
        self.conv1 = _CausalConv(channels, channels, space=3, stride=(1, 2)) if space else None
        self.conv2 = _CausalConv(channels, channels, time=3, stride=(2, 1)) if time else None
        self.conv3 = _CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W), T = 1 + 2k where time is halved, to (B, C, 1 + k, H / 2, W / 2)."""
        if self.conv1 is not None:
            padded = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(padded) + F.avg_pool3d(padded, (1, 2, 2))
        if self.conv2 is not None:
            x = self.conv2(x) + F.avg_pool3d(_repeat_first(x, 1), (2, 1, 1))
        out: Tensor = self.conv3(x)
        return out


class _ClipGrow(nn.Module):
    """Doubles time, space or both: repeated values plus a convolution of them, one axis after the other, then a projection."""

    def __init__(self, channels: int, time: bool, space: bool) -> None:
        super().__init__()
        self.conv1 = _CausalConv(channels, channels, time=3) if time else None
        self.conv2 = _CausalConv(channels, channels, space=3) if space else None
        self.conv3 = _CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, 1 + k, H, W) to (B, C, 1 + 2k, 2H, 2W)."""
        if self.conv1 is not None:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.conv1(x) + x
        if self.conv2 is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        out: Tensor = self.conv3(x)
        return out


@dataclass(frozen=True)
class _Layers:
    """What differs between images and clips: the bricks of `_Block`, `_Encoder` and `_Decoder`."""

    axes: int
    conv: Callable[[int, int], nn.Module]
    point: Callable[[int, int], nn.Module]
    norm: Callable[[int], nn.Module]
    attention: Callable[[int], nn.Module]
    shrink: Callable[[int, bool, bool], nn.Module]
    grow: Callable[[int, bool, bool], nn.Module]


class _Attention(nn.Module):
    """One head with a residual: over the pixels of each frame, or over each pixel's frames up to the present one."""

    def __init__(self, channels: int, layers: _Layers, *, time: bool = False) -> None:
        super().__init__()
        self.norm = layers.norm(channels)
        self.q, self.k, self.v, self.proj_out = (layers.point(channels, channels) for _ in range(4))
        self._time = time

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to the same shape."""
        h = self.norm(x)
        # (B, C, [T,] H, W) -> (B, [T,] H * W, C), or (B, H * W, T, C)
        q, k, v = (part(h).flatten(-2).movedim(1, -1) for part in (self.q, self.k, self.v))
        if self._time:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self._time)
        if self._time:
            mixed = mixed.transpose(1, 2)
        out: Tensor = x + self.proj_out(mixed.movedim(-1, 1).reshape(x.shape))
        return out


_IMAGE: _Layers = _Layers(
    axes=2,
    conv=lambda inside, outside: nn.Conv2d(inside, outside, 3, padding=1),
    point=lambda inside, outside: nn.Conv2d(inside, outside, 1),
    norm=lambda channels: nn.GroupNorm(32, channels, eps=1e-6),
    attention=lambda channels: _Attention(channels, _IMAGE),
    shrink=lambda channels, _, __: Downsample(channels),
    grow=lambda channels, _, __: Upsample(channels),
)
_CLIP: _Layers = _Layers(
    axes=3,
    conv=lambda inside, outside: nn.Sequential(
        _CausalConv(inside, outside, space=3), _CausalConv(outside, outside, time=3)
    ),
    point=_CausalConv,
    norm=_FrameNorm,
    attention=lambda channels: nn.Sequential(_Attention(channels, _CLIP), _Attention(channels, _CLIP, time=True)),
    shrink=_ClipShrink,
    grow=_ClipGrow,
)

# ------------------------------------------------------------------------------------------------------- network


_Steps = Sequence[tuple[bool, bool]]
"""Of each level: is time halved (doubled), is space."""


class _Block(nn.Module):
    def __init__(self, layers: _Layers, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = layers.norm(inside), layers.conv(inside, outside)
        self.norm2, self.conv2 = layers.norm(outside), layers.conv(outside, outside)
        self.nin_shortcut = nn.Identity() if inside == outside else layers.point(inside, outside)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inside, *grid) to (B, outside, *grid)."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class _Middle(nn.Module):
    def __init__(self, layers: _Layers, width: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = _Block(layers, width, width), _Block(layers, width, width)
        self.attn_1 = layers.attention(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, *grid) to the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class _Level(nn.Module):
    """Blocks of one resolution and, under the name the checkpoints use, the step to the next one."""

    def __init__(self, blocks: Iterable[_Block], name: str, step: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self._name = name if step is not None else ""
        if step is not None:
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *grid) to (B, C', *grid of the next level)."""
        for block in self.block:
            x = block(x)
        return self.get_submodule(self._name)(x) if self._name else x


class _Encoder(nn.Module):
    def __init__(self, layers: _Layers, widths: Sequence[int], depth: int, bands: int, z: int, steps: _Steps) -> None:
        super().__init__()
        self.conv_in = layers.conv(bands, widths[0])
        self.down = nn.ModuleList()
        for (inside, outside), step in zip(pairwise(widths), steps, strict=True):
            blocks = (_Block(layers, outside if i else inside, outside) for i in range(depth))
            self.down.append(_Level(blocks, "downsample", layers.shrink(outside, *step) if any(step) else None))
        self.mid = _Middle(layers, widths[-1])
        self.norm_out, self.conv_out = layers.norm(widths[-1]), layers.conv(widths[-1], z)

    def forward(self, x: Tensor) -> Tensor:
        """Map wavelet bands (B, bands, *axes) to (B, z, *grid)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class _Decoder(nn.Module):
    def __init__(self, layers: _Layers, widths: Sequence[int], depth: int, bands: int, z: int, steps: _Steps) -> None:
        super().__init__()
        self.conv_in = layers.conv(z, widths[-1])
        self.mid = _Middle(layers, widths[-1])
        self.up = nn.ModuleList()
        above = [*widths[1:], widths[-1]]
        for inside, outside, step in zip(above[1:], above, steps, strict=False):
            blocks = (_Block(layers, outside if i else inside, outside) for i in range(depth + 1))
            self.up.append(_Level(blocks, "upsample", layers.grow(outside, *step) if any(step) else None))
        self.norm_out, self.conv_out = layers.norm(above[0]), layers.conv(above[0], bands)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, z, *grid) to wavelet bands (B, bands, *axes)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


def downward(levels: int, time: int, space: int) -> _Steps:
    """Return at which levels an encoder halves time and space, `time` and `space` times in all: as early as it can."""
    return [(level < time, level < space) for level in range(levels)]


def upward(levels: int, time: int, space: int) -> _Steps:
    """Return at which levels a decoder, which runs from the last level to the first, doubles time and space.

    Time is doubled one level later than it was halved, and space with it.
    """
    steps = []
    for done in reversed(range(levels)):
        in_time = 0 < done < time + 1
        steps.append((in_time, in_time or (done < space and space > time)))
    return steps


class Cosmos(nn.Module):
    """Encoder and decoder of one Cosmos tokenizer. Reference: arXiv:2501.03575, NVIDIA/Cosmos-Tokenizer.

    Args:
        stride: (H, W) of images or (T, H, W) of clips, powers of two, at least `patch`.
        width: Channels behind the first convolution.
        factors: Of `width`, a level.
        decoder_factors: Of the decoder, where it has other levels.
        depth: Blocks a level of the encoder; the decoder has one more.
        patch: By how much the wavelets shrink every axis.
        z: Channels between a half and its projection.
        code: Channels of the code.
    """

    def __init__(
        self,
        stride: Sequence[int],
        width: int,
        factors: Sequence[int],
        depth: int,
        patch: int,
        z: int,
        code: int,
        decoder_factors: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        layers = _IMAGE if len(stride) == 2 else _CLIP
        self._patch, self._clips = patch, layers.axes == 3
        bands = 3 * patch**layers.axes
        space = (stride[-1] // patch).bit_length() - 1
        time = (stride[0] // patch).bit_length() - 1 if self._clips else 0
        widths = [width, *(width * factor for factor in factors)]
        self.encoder = _Encoder(layers, widths, depth, bands, z, downward(len(factors), time, space))
        factors = decoder_factors or factors
        widths = [width, *(width * factor for factor in factors)]
        self.decoder = _Decoder(layers, widths, depth, bands, z, upward(len(factors), time, space))
        self.quant_conv, self.post_quant_conv = layers.point(z, code), layers.point(code, z)

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W), or (B, 3, T, H, W) with T = 1 + stride * k, in [-1, 1] to (B, code, *grid)."""
        # The first frame of a clip becomes a whole patch, so that it is encoded alone.
        x = _repeat_first(x, self._patch - 1) if self._clips else x
        for _ in range(self._patch.bit_length() - 1):
            x = haar(x)
        out: Tensor = self.quant_conv(self.encoder(x))
        return out

    def signal(self, code: Tensor) -> Tensor:
        """Map (B, code, *grid) back to a signal, nominally in [-1, 1]."""
        x: Tensor = self.decoder(self.post_quant_conv(code))
        for _ in range(self._patch.bit_length() - 1):
            x = inverse_haar(x)
        return x[:, :, self._patch - 1 :] if self._clips else x
