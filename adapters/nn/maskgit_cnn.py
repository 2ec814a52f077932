"""The convolutional autoencoder of MaskGIT, which VQGAN+, MaskBit, MAGE and TiTok's pixel decoder share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.types import Neighbours

from .bits import bits_of, index_of
from .keynames import Rule
from .neighbours import BitNeighbours, TableNeighbours
from .quantize import VectorQuantizer


@dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    Attributes:
        channels: Of the finest level.
        multipliers: Factor on `channels` a level, finest first; each level but the last halves the grid.
        blocks: Residual blocks a level and in the middle, in encoder and decoder alike.
        latent_channels: Of the latent grid.
        strided: Halve with a 3x3 convolution of stride 2 (VQGAN+, MaskBit) instead of 2x2 averages (MaskGIT).
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    latent_channels: int = 256
    strided: bool = False

    @property
    def levels(self) -> tuple[int, ...]:
        """Channels a level, finest first."""
        return tuple(self.channels * factor for factor in self.multipliers)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """Two bias-free 3x3 convolutions; where the width changes, the 1x1 shortcut is applied to the *result*, not to the input.

    So the input is dropped at a change of width: MaskGIT was trained that way, and its descendants kept it.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width), nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.nin_shortcut = None if width == out else nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Stage(nn.Module):
    """The residual blocks of one level, then an optional change of resolution."""

    def __init__(self, width: int, out: int, blocks: int, *, down: str = "", up: bool = False) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(Residual(width if i == 0 else out, out) for i in range(blocks))
        self.down_conv = nn.Conv2d(out, out, 3, stride=2) if down == "conv" else None
        self.upsample_conv = nn.Conv2d(out, out, 3, padding=1) if up else None
        self._average = down == "average"

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        if self.down_conv is not None:
            # TensorFlow's SAME padding of a stride-2 convolution on an even size: nothing before, one after.
            return self.down_conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]
        if self._average:
            return F.avg_pool2d(x, 2)
        if self.upsample_conv is not None:
            return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
        return x


class Encoder(nn.Module):
    """(B, 3, H, W) in [0, 1], sides a multiple of the stride, to (B, latent_channels, h, w)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths, last = shape.levels, len(shape.levels) - 1
        self.conv_in = nn.Conv2d(3, shape.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Stage(
                (shape.channels, *widths)[level],
                width,
                shape.blocks,
                down="" if level == last else "conv" if shape.strided else "average",
            )
            for level, width in enumerate(widths)
        )
        self.mid = Stage(widths[-1], widths[-1], shape.blocks)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], shape.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """(B, latent_channels, h, w) to (B, 3, H, W), nominally [0, 1]; `up` is in order of execution, coarsest first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = shape.levels[::-1]
        self.conv_in = nn.Conv2d(shape.latent_channels, widths[0], 3, padding=1)
        self.mid = Stage(widths[0], widths[0], shape.blocks)
        self.up = nn.ModuleList(
            Stage((widths[0], *widths)[k], width, shape.blocks, up=k < len(widths) - 1)
            for k, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for stage in self.up:
            h = stage(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class TableAutoencoder(nn.Module):
    """MaskGIT's VQGAN: one table, euclidean. Chang et al., "MaskGIT", CVPR 2022; Li et al., MAGE, CVPR 2023."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quantize = VectorQuantizer(size, shape.latent_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to indices (B, 1, h, w)."""
        return torch.stack([stream.indices for stream in self.quantize.encode(self.encoder(x))], dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, H, W)."""
        table = self.quantize.embedding
        out: Tensor = self.decoder(table(indices[:, 0]).movedim(-1, 1).contiguous())
        return out

    def neighbours(self, codebook: str) -> Neighbours:  # noqa: ARG002
        """Return what lies near a row of the table."""
        return TableNeighbours(self.quantize.embedding.weight)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:  # noqa: ARG002
        """Map (B, 3, H, W) to latents (B, h, w, C)."""
        latents: Tensor = self.encoder(x)
        return latents.movedim(1, -1)


class SignAutoencoder(nn.Module):
    """MaskBit: a token is the signs of the latent channels, channel 0 the lowest bit; zero counts as negative.

    Weber et al., "MaskBit: Embedding-free Image Generation via Bit Tokens", TMLR 2024.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self._bits = shape.latent_channels

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to indices (B, 1, h, w) below 2^bits."""
        return index_of(self.encoder(x) > 0, dim=1, low_first=True).unsqueeze(1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, H, W)."""
        signs = bits_of(indices[:, 0], self._bits, dim=1, low_first=True) * 2 - 1
        out: Tensor = self.decoder(signs.to(self.decoder.conv_in.weight.dtype))
        return out

    def neighbours(self, codebook: str) -> Neighbours:  # noqa: ARG002
        """Return what lies near a word of signs."""
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:  # noqa: ARG002
        """Map (B, 3, H, W) to latents (B, h, w, bits)."""
        latents: Tensor = self.encoder(x)
        return latents.movedim(1, -1)


# -------------------------------------------------------------------------------------------------------- key layouts


def _finest_first(levels: int) -> Rule:
    def turned(match: re.Match[str]) -> str:
        return f"{match[1]}.{levels - 1 - int(match[2])}."

    return (r"((?:^|.*\.)up)\.(\d+)\.", turned)


_PORT: Sequence[Rule] = ((r"\bmid\.res_blocks\.", "mid."), (r"\bres_blocks\b", "block"))
_MAGE: Sequence[Rule] = (
    (r"\bmid\.res_blocks\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}"),
    (r"\bres_blocks\b", "block"),
    (r"\bupsample_conv\b", "upsample.conv"),
)
_NAMINGS: Mapping[str, tuple[bool, Sequence[Rule]]] = MappingProxyType(
    {"maskbit": (False, ()), "1d-tokenizer": (True, _PORT), "mage": (True, _MAGE)}
)


def naming(name: str, levels: int) -> tuple[Rule, ...]:
    """Return the rules from this file's keys to those of a published layout.

    Args:
        name: `maskbit` (VQGAN+, MaskBit), `1d-tokenizer` (`block`, `mid.i`) or `mage` (`block`, `mid.block_i`,
            `upsample.conv`); the last two number `up` from the finest level.
        levels: Of the network.

    Raises:
        ValueError: No such layout.
    """
    if name not in _NAMINGS:
        raise ValueError(f"key layout {name!r} is not one of {', '.join(_NAMINGS)}")
    finest_first, rules = _NAMINGS[name]
    return (*((_finest_first(levels),) if finest_first else ()), *rules)
