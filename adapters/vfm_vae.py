"""VFM-VAE: features of a frozen SigLIP 2, compressed to a Gaussian code and painted by a modulated convolutional pyramid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.network import NetworkTokenizer, load_network
from .nn.projection import Projection
from .nn.siglip import SiglipTrunk, siglip_layouts
from .nn.vit2d import renamed

_HEADS = 8


class _Linear(nn.Module):
    """A linear layer whose weight is scaled at run time by `rate / sqrt(width_in)` and whose bias by `rate`."""

    def __init__(self, width_in: int, width_out: int, rate: float = 1.0) -> None:
        super().__init__()
        self._rate, self._gain = rate, rate / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.empty(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self._gain, self.bias * self._rate)


class _Style(nn.Module):
    """One factor a channel from the style vector: a * b + c of three linear maps."""

    def __init__(self, style: int, width: int) -> None:
        super().__init__()
        self.proj = _Linear(style, 3 * width)

    def forward(self, w: Tensor) -> Tensor:
        a, b, c = self.proj(w).chunk(3, dim=1)
        out: Tensor = a * b + c
        return out


class _Modulated(nn.Module):
    """1x1 convolution of channels scaled by a style; optionally each output is divided by its effective weight's norm."""

    def __init__(self, width_in: int, width_out: int, *, demodulate: bool) -> None:
        super().__init__()
        self._demodulate = demodulate
        self.weight = nn.Parameter(torch.empty(width_out, width_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(1, width_out, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = F.conv2d(x * style[:, :, None, None], self.weight)
        if self._demodulate:
            energy = (self.weight[None, :, :, 0, 0] * style[:, None]).square().sum(2)
            h = h * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        return h + self.bias


class _ConvNext(nn.Module):
    """ConvNeXt block with a style on its first projection and a stored map of noise after the depthwise convolution."""

    def __init__(self, width: int, style: int, kernel: int, side: int) -> None:
        super().__init__()
        self.affine_pw1 = _Style(style, width)
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.noise_const: Tensor
        self.register_buffer("noise_const", torch.empty(side, side))
        self.noise_strength = nn.Parameter(torch.empty(()))
        self.pwconv1 = _Modulated(width, 4 * width, demodulate=True)
        self.pwconv2 = nn.Conv2d(4 * width, width, 1)
        self.norm = nn.GroupNorm(min(32, width // 4), width)
        self.gamma = nn.Parameter(torch.empty(1, width, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h = self.dwconv(x)
        noise = self.noise_const[None, None] * self.noise_strength
        h = self.norm(h + F.interpolate(noise, size=h.shape[2:], mode="bilinear", align_corners=False))
        out: Tensor = x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(h, self.affine_pw1(w))))
        return out


class _Up(nn.Module):
    """Separable convolution, pixel shuffle and a fixed binomial blur; the norm comes first, or after the shuffle."""

    def __init__(self, width_in: int, width_out: int, blur: int, *, norm_first: bool) -> None:
        super().__init__()
        self._blur, self._norm_first = blur, norm_first
        width = width_in if norm_first else width_out
        self.norm = nn.GroupNorm(min(32, width // 4), width)
        self.depthwise = nn.Conv2d(width_in, width_in, 3, padding=1, groups=width_in, bias=False)
        self.pointwise = nn.Conv2d(width_in, 4 * width_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_shuffle(self.pointwise(self.depthwise(self.norm(x) if self._norm_first else x)), 2)
        if not self._norm_first:
            h = self.norm(h)
        row = torch.tensor([math.comb(self._blur - 1, k) for k in range(self._blur)], device=h.device, dtype=h.dtype)
        kernel = torch.outer(row, row) / row.sum() ** 2
        pad = self._blur // 2
        h = F.pad(h, (pad, pad, pad, pad), mode="replicate")
        return F.conv2d(h, kernel.expand(h.shape[1], 1, -1, -1), groups=h.shape[1])


class _ChannelNorm(nn.Module):
    """Channels to length sqrt(C), then a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * math.sqrt(x.shape[1]) * self.gamma


class _MapAttention(nn.Module):
    """Attention over all positions of a map and one learned entry that stands for nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Conv2d(width, width, 1, bias=False) for _ in range(4))
        self.null_kv = nn.Parameter(torch.empty(2, _HEADS, width // _HEADS))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        shape = (b, _HEADS, c // _HEADS, h * w)
        q, k, v = (to(normed).view(shape).transpose(2, 3) for to in (self.to_q, self.to_k, self.to_v))
        null_k, null_v = (part[None, :, None].expand(b, -1, -1, -1) for part in self.null_kv)
        out = F.scaled_dot_product_attention(q, torch.cat([null_k, k], dim=2), torch.cat([null_v, v], dim=2))
        mixed: Tensor = self.to_out(out.transpose(2, 3).reshape(b, c, h, w))
        return mixed


class _MapBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = _MapAttention(width)
        self.ff = nn.Sequential(
            _ChannelNorm(width), nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        out: Tensor = x + self.ff(x)
        return out


class _Rgb(_Modulated):
    """The image a level contributes, and in the end is."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__(width, 3, demodulate=False)
        self._gain = 1 / math.sqrt(width)
        self.affine = _Style(style, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return super().forward(x, self.affine(style) * self._gain)


class _Level(nn.Module):
    """Doubles the grid, runs ConvNeXt and attention blocks, and adds the result to the doubled sum of the coarser levels."""

    def __init__(
        self, index: int, width_in: int, width: int, before: int | None, style: int, blocks: int, attention: int
    ) -> None:
        super().__init__()
        kernel, blur, side = 5 if index <= 1 else 7, 3 if index <= 2 else 5, 8 * 2**index
        convnext = partial(_ConvNext, width, style, kernel, side)
        self.seperate_upsample_conv = _Up(width_in, width, blur, norm_first=index > 0)
        self.conv0 = convnext()
        self.convs1 = nn.ModuleList(convnext() for _ in range(blocks * (3 if index <= 3 else 2)))
        self.self_attns = nn.ModuleList(_MapBlock(width) for _ in range(attention))
        self.torgb = _Rgb(width, style)
        if before is not None:
            self.last_upsample_conv = _Up(before, width, blur, norm_first=True)

    def forward(self, x: Tensor, total: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv0(self.seperate_upsample_conv(x), w)
        for block in self.convs1:
            x = block(x, w)
        for block in self.self_attns:
            x = block(x)
        return x, x if total is None else self.last_upsample_conv(total) + x


def _separable(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_in, 3, padding=1, groups=width_in, bias=False),
        nn.Conv2d(width_in, width_out, 1, bias=False),
        nn.GroupNorm(min(32, width_out), width_out),
        nn.LeakyReLU(0.2),
    )


def _entry(z: int, width: int, scale: float) -> nn.Sequential:
    """Bring the code to a level's grid: by unshuffling to `scale` < 1, or shuffling to `scale` > 1."""
    mixed = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(min(32, width), width))
    if scale < 1:
        factor = round(1 / scale)
        return nn.Sequential(nn.PixelUnshuffle(factor), _separable(z * factor**2, width), mixed)
    if scale == 1:
        return nn.Sequential(_separable(z, width), mixed)
    factor = round(scale)
    return nn.Sequential(_separable(z, width * factor**2), nn.PixelShuffle(factor), mixed)


class _Synthesis(nn.Module):
    def __init__(
        self, z: int, style: int, widths: Sequence[int], entries: Sequence[int], attention: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.z_convs = nn.ModuleDict({str(i): _entry(z, width, 4 * 2**i / 16) for i, width in enumerate(entries)})
        self.blocks = nn.ModuleDict()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else None
            width_in = (before or 0) + (entries[i] if i < len(entries) else 0)
            depth = attention[i] if i < len(attention) else 0
            self.blocks[str(i)] = _Level(i, width_in, width, before, style, blocks, depth)

    def forward(self, z: Tensor, w: Tensor) -> Tensor:
        parts: list[Tensor] = []
        total: Tensor | None = None
        level: Any = None
        levels: Iterable[tuple[str, Any]] = self.blocks.items()
        for name, level in levels:
            if name in self.z_convs:
                parts.append(self.z_convs[name](z))
            x, total = level(torch.cat(parts, dim=1), total, w)
            parts = [x]
        out: Tensor = level.torgb(total, w)
        return out


class VfmVae(nn.Module):
    """Frozen encoder at twice the size, one adapter a taken layer, posterior mean, mapping network, synthesis.

    Only the last level's image is used at inference; the images of the coarser ones are part of the checkpoint.

    Reference: VFM-VAE, arXiv:2510.18457, tianciB/VFM-VAE.
    """

    def __init__(
        self,
        vfm: Mapping[str, int],
        taken: Sequence[int],
        patch_width: int,
        latent: int,
        decompress: int,
        style: int,
        widths: Sequence[int],
        entries: Sequence[int],
        attention: Sequence[int],
        blocks: int,
    ) -> None:
        super().__init__()
        width, joined, z = vfm["width"], 4 * patch_width * len(taken), latent * decompress
        self._latent = latent
        self.vfm = SiglipTrunk(**vfm, taken=taken)
        self.patch_quants = nn.ModuleList(Projection(width, patch_width, width // patch_width) for _ in taken)
        self.final_quant = Projection(joined, 2 * latent, joined // (2 * latent))
        self.post_quant = Projection(latent, z, decompress)
        self.mapping = nn.Sequential(_Linear(z, z, 0.01), nn.LeakyReLU(0.2), _Linear(z, style, 0.01))
        self.synthesis = _Synthesis(z, style, widths, entries, attention, blocks)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to the posterior's mean (B, latent, H/16, W/16)."""
        large = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) * 2 - 1
        grid = (x.shape[2] // 8, x.shape[3] // 8)
        parts = []
        for feature, adapt in zip(self.vfm(large), self.patch_quants, strict=True):
            narrow = torch.unflatten(adapt(feature).transpose(1, 2), 2, grid)
            parts.append(F.pixel_unshuffle(narrow, 2).flatten(2).transpose(1, 2))
        moments = self.final_quant(torch.cat(parts, dim=-1)).transpose(1, 2)[:, : self._latent]
        return torch.unflatten(moments, 2, (grid[0] // 2, grid[1] // 2)).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, latent, h, w) to (B, 3, 16h, 16w), nominally in [0, 1]."""
        wide = self.post_quant(latents.flatten(2).transpose(1, 2)).transpose(1, 2)
        pooled = wide.mean(2)
        w = self.mapping(pooled * torch.rsqrt(pooled.square().mean(1, keepdim=True) + 1e-8))
        image: Tensor = self.synthesis(torch.unflatten(wide, 2, (latents.shape[2], latents.shape[3])), w)
        return (image + 1) / 2


_LAYOUT = renamed(
    [
        (r"^ldm_adapter\.patch_quants\.(\d+)\.0\.blocks\.0\.", r"patch_quants.\1."),
        (r"^ldm_adapter\.(final_quant|post_quant)\.blocks\.0\.", r"\1."),
        (r"^mapping\.mlp\.fc0\.", "mapping.0."),
        (r"^mapping\.mlp\.fc1\.", "mapping.2."),
    ]
)


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return VfmVae(**architecture)


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the averaged generator; pooling head, constant kernels and training projections are left out."""
    return load_network(
        card,
        weights,
        partial(network, card.architecture),
        inside=("G_ema",),
        or_inside=[()],
        layouts=[*siglip_layouts(r"vfm_encoder\.encoder\.vision_model\.(vision_model\.)?", "vfm."), _LAYOUT],
        drop=["vfm.head.*", "mapping.x_avg", "*.blur_weight", "ldm_adapter.linear_proj.*"],
    )
