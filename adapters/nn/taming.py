"""The convolutional autoencoder of taming-transformers, with every option its descendants turned: one net, many papers.

Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis", 2021 (arXiv:2012.09841). State-dict
names are those of the original; `own_to_*` functions spell them as LlamaGen, Infinity or transformers do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .magvit2 import _AdaptiveNorm, _DepthToSpace


@dataclass(frozen=True)
class Trunk:
    """The sizes of an encoder and its decoder.

    Attributes:
        ch: Channels of the finest level.
        ch_mult: Their multiple at each level, finest first; the net downsamples by 2 between levels.
        num_res_blocks: Residual blocks a level of the encoder; the decoder has one more.
        z_channels: What the decoder takes, and the encoder gives (twice that, if `double_z`).
        double_z: The encoder gives mean and log-variance.
        attention: Levels of the encoder with attention after each block. The official configurations name them by
            resolution, but the configured one, not the input's: it is a place in the net.
        decoder_attention: The same in the decoder; None: as in the encoder.
        mid_attention: Attention between the two blocks at the bottom.
        fused_qkv: One 1x1 convolution for query, key and value (VAR).
        spatial_norm: Channels of the condition of the decoder's norms (MoVQ); 0: plain group norms.
        adaptive_norm: Before each level of the decoder, a norm whose gain and bias come from the latents (GigaTok).
        depth_to_space: The decoder enlarges by moving channels to places, instead of nearest neighbour (GigaTok).
        in_channels: Channels of the image.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    double_z: bool = False
    attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] | None = None
    mid_attention: bool = True
    fused_qkv: bool = False
    spatial_norm: int = 0
    adaptive_norm: bool = False
    depth_to_space: bool = False
    in_channels: int = 3


def _norm(channels: int, condition: int = 0) -> nn.Module:
    return SpatialNorm(channels, condition) if condition else nn.GroupNorm(32, channels, eps=1e-6)


def _apply(norm: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    out: Tensor = norm(x, condition) if isinstance(norm, SpatialNorm) else norm(x)
    return out


class SpatialNorm(nn.Module):
    """A group norm whose gain and bias are 1x1 convolutions of the quantized latents. Zheng et al., MoVQ, 2022."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(condition, channels, 1)
        self.conv_b = nn.Conv2d(condition, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Norm (B, C, H, W) by a condition (B, D, h, w), which is brought to H x W by its nearest values."""
        near = F.interpolate(condition, size=x.shape[-2:], mode="nearest")
        out: Tensor = self.norm_layer(x) * self.conv_y(near) + self.conv_b(near)
        return out


class ResBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, around a shortcut that is 1x1 where the channels change."""

    def __init__(self, channels: int, out: int, condition: int = 0) -> None:
        super().__init__()
        self.norm1 = _norm(channels, condition)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out, condition)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out, H, W)."""
        h = self.conv1(F.silu(_apply(self.norm1, x, condition)))
        h = self.conv2(F.silu(_apply(self.norm2, h, condition)))
        out: Tensor = (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h
        return out


class AttentionBlock(nn.Module):
    """Single-head attention over all places of a map, added to it."""

    def __init__(self, channels: int, *, fused: bool = False, condition: int = 0) -> None:
        super().__init__()
        self.norm = _norm(channels, condition)
        self.fused = fused
        if fused:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        h = _apply(self.norm, x, condition)
        parts = self.qkv(h).chunk(3, dim=1) if self.fused else (self.q(h), self.k(h), self.v(h))
        q, k, v = (part.flatten(2).transpose(1, 2).unsqueeze(1) for part in parts)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(h)
        return out


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 after one row and column of zeros at the bottom and right, none at the top and left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest neighbour times 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution, each with attention or not, and the change to the next resolution."""

    def __init__(
        self,
        channels: int,
        out: int,
        blocks: int,
        *,
        attend: bool,
        fused: bool,
        condition: int,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(channels if i == 0 else out, out, condition) for i in range(blocks))
        count = blocks if attend else 0
        self.attn = nn.ModuleList(AttentionBlock(out, fused=fused, condition=condition) for _ in range(count))
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = None if isinstance(resample, Downsample) else resample

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out, H', W')."""
        for i, block in enumerate(self.block):
            x = block(x, condition)
            if len(self.attn):
                x = self.attn[i](x, condition)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Middle(nn.Module):
    """Two blocks at the bottom with attention between them, or not."""

    def __init__(self, channels: int, *, attend: bool, fused: bool, condition: int = 0) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, condition)
        self.attn_1 = AttentionBlock(channels, fused=fused, condition=condition) if attend else None
        self.block_2 = ResBlock(channels, channels, condition)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.block_1(x, condition)
        if self.attn_1 is not None:
            x = self.attn_1(x, condition)
        out: Tensor = self.block_2(x, condition)
        return out


class Encoder(nn.Module):
    """Image (B, 3, H, W) to (B, z, H / s, W / s), s = 2 ** (levels - 1); H and W multiples of s.

    Without `head` it ends before its last norm and convolution, for tokenizers that branch there.
    """

    def __init__(self, trunk: Trunk, *, head: bool = True) -> None:
        super().__init__()
        widths = [trunk.ch * m for m in (1, *trunk.ch_mult)]
        last = len(trunk.ch_mult) - 1
        self.conv_in = nn.Conv2d(trunk.in_channels, trunk.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[i],
                widths[i + 1],
                trunk.num_res_blocks,
                attend=i in trunk.attention,
                fused=trunk.fused_qkv,
                condition=0,
                resample=Downsample(widths[i + 1]) if i < last else None,
            )
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1], attend=trunk.mid_attention, fused=trunk.fused_qkv)
        self.head = head
        if head:
            self.norm_out = _norm(widths[-1])
            self.conv_out = nn.Conv2d(widths[-1], trunk.z_channels * (2 if trunk.double_z else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, z, H / s, W / s), twice the channels with `double_z`."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.mid(x)
        return self.conv_out(F.silu(self.norm_out(out))) if self.head else out


class Decoder(nn.Module):
    """Latents (B, z, h, w) to an image (B, 3, h * s, w * s); `up.0` is the finest level and runs last."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        widths = [trunk.ch * m for m in trunk.ch_mult]
        last, condition = len(widths) - 1, trunk.spatial_norm
        enlarge = _DepthToSpace if trunk.depth_to_space else Upsample
        attention = trunk.attention if trunk.decoder_attention is None else trunk.decoder_attention
        self.conv_in = nn.Conv2d(trunk.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attend=trunk.mid_attention, fused=trunk.fused_qkv, condition=condition)
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                widths[i],
                trunk.num_res_blocks + 1,
                attend=i in attention,
                fused=trunk.fused_qkv,
                condition=condition,
                resample=enlarge(widths[i]) if i > 0 else None,
            )
            for i in range(last + 1)
        )
        norms = (_AdaptiveNorm(trunk.z_channels, widths[min(i + 1, last)]) for i in range(last + 1))
        self.adaptive = nn.ModuleList(norms if trunk.adaptive_norm else ())
        self.norm_out = _norm(widths[0], condition)
        self.conv_out = nn.Conv2d(widths[0], trunk.in_channels, 3, padding=1)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (B, z, h, w) to (B, 3, h * s, w * s), unclamped; `condition` (B, D, h, w) steers spatial norms."""
        x = self.mid(self.conv_in(z), condition)
        for i in reversed(range(len(self.up))):
            x = self.adaptive[i](x, z) if len(self.adaptive) else x
            x = self.up[i](x, condition)
        out: Tensor = self.conv_out(F.silu(_apply(self.norm_out, x, condition)))
        return out


class TamingNet(nn.Module):
    """Encoder, the convolutions around the code, the quantizer, and the decoder.

    Args:
        trunk: Sizes.
        embed_dim: Channels of the code.
        kernel: Size of the convolutions before and after the code: 1 or 3; 0: there are none.
        quantize: What turns latents into indices; None for a Gaussian posterior, whose mode is the code.
        decoder: Another trunk for the decoder, where it differs.
    """

    def __init__(
        self, trunk: Trunk, embed_dim: int, kernel: int, quantize: nn.Module | None, decoder: Trunk | None = None
    ) -> None:
        super().__init__()
        gain = 2 if trunk.double_z else 1
        self.encoder, self.decoder = Encoder(trunk), Decoder(decoder or trunk)
        self.quantize = quantize
        self.quant_conv = self.post_quant_conv = None
        if kernel:
            self.quant_conv = nn.Conv2d(gain * trunk.z_channels, gain * embed_dim, kernel, padding=kernel // 2)
            z_out = (decoder or trunk).z_channels
            self.post_quant_conv = nn.Conv2d(embed_dim, z_out, kernel, padding=kernel // 2)
        self.double_z, self.conditioned = trunk.double_z, trunk.spatial_norm > 0

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to the latents before quantization, or to the posterior's mean: (B, embed_dim, h, w)."""
        h: Tensor = self.encoder(x)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        return h.chunk(2, dim=1)[0].contiguous() if self.double_z else h

    def image(self, latents: Tensor) -> Tensor:
        """Map latents, quantized or not, (B, embed_dim, h, w) to an unclamped image (B, 3, H, W)."""
        h = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        out: Tensor = self.decoder(h, latents if self.conditioned else None)
        return out


# ------------------------------------------------------------------------------------------------- key layouts

Layout = Literal["taming", "llamagen", "infinity", "rq-vae", "transformers"]

_DOWN = re.compile(r"^encoder\.down\.(\d+)\.(block|attn|downsample)\.")
_UP = re.compile(r"^decoder\.up\.(\d+)\.(block|attn|upsample)\.")
_MID = re.compile(r"\.mid\.(block_1|attn_1|block_2)\.")
_ADAPTIVE = re.compile(r"^decoder\.adaptive\.(\d+)\.")
_RENAMED: Mapping[str, str] = MappingProxyType({"block_1": "0", "attn_1": "1", "block_2": "2", "block": "res"})


def official_key(own: str, layout: Layout, levels: int, *, mid_attention: bool = True) -> str:
    """Spell a state-dict key of `TamingNet` as another code base does.

    Args:
        own: The key here, which is that of taming-transformers.
        layout: `llamagen` counts the decoder's levels in the order they run and numbers the middle; `infinity` wraps
            every convolution and norm; `rq-vae` calls the quantizer so; `transformers` (JanusVQVAE) counts the decoder's
            levels in the order they run.
        levels: How many resolutions the net has.
        mid_attention: Whether it has attention at the bottom; `llamagen` counts it.
    """
    if layout == "rq-vae":
        return re.sub(r"^quantize\.", "quantizer.", own)
    if layout == "infinity":
        return re.sub(r"(conv\w*|norm\w*|nin_shortcut|q|k|v|proj_out)\.(weight|bias)$", _wrapped, own)
    if layout == "llamagen":
        key = _DOWN.sub(lambda m: f"encoder.conv_blocks.{m[1]}.{_RENAMED.get(m[2], m[2])}.", own)
        key = _UP.sub(lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}.{_RENAMED.get(m[2], m[2])}.", key)
        key = _ADAPTIVE.sub(lambda m: f"decoder.adaptive.{levels - 1 - int(m[1])}.", key)
        return _MID.sub(lambda m: f".mid.{_RENAMED[m[1]] if mid_attention else int(m[1] == 'block_2')}.", key)
    if layout == "transformers":
        return _UP.sub(lambda m: f"decoder.up.{levels - 1 - int(m[1])}.{m[2]}.", own)
    return own


def _wrapped(match: re.Match[str]) -> str:
    return f"{match[1]}.{'norm' if match[1].startswith('norm') else 'conv'}.{match[2]}"
