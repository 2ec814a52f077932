"""Vision transformers that write an image into a few latent tokens and read it back: TiTok, SoftVQ, XQ-GAN and their kin.

Encoder: [class, patches, latents] through a transformer; the latents that come out are the code. Decoder: [class, one
mask token a patch, the code] through another; what stands at the mask tokens becomes pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.types import Neighbours

from .keynames import Rule
from .maskgit_cnn import Decoder as PixelDecoder
from .maskgit_cnn import Shape as PixelShape
from .maskgit_cnn import naming
from .token_quantizers import Searchable, TokenQuantizer
from .vit2d import Attention, Mlp, Rotate, rotate_pairs, unpatch

Style = Literal["clip", "dinov2"]
"""Block dialect: `clip` (TiTok) has a norm before the first block and none of the layer scales `dinov2` (timm) has."""


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a transformer; the MLP is four times as wide."""

    width: int
    depth: int
    heads: int


DINOV2_SIZES: Mapping[str, Size] = MappingProxyType(
    {"small": Size(384, 12, 6), "base": Size(768, 12, 12), "large": Size(1024, 24, 16)}
)
"""The transformers of DINOv2."""


def dinov2_size(value: str | Sequence[int]) -> Size:
    """Read a size from a card: the name of one of DINOv2, or [width, depth, heads]."""
    return DINOV2_SIZES[value] if isinstance(value, str) else Size(*value)


@dataclass(frozen=True)
class Layout:
    """Everything about a one-dimensional tokenizer but its quantizer.

    Attributes:
        style: Block dialect.
        encoder, decoder: Sizes.
        image_size, patch: Side of the image and of a patch, in pixels; learned positions fix both.
        latents: Latent tokens the encoder reads out.
        code_channels: Channels of a token after projection (twice the code's for a Gaussian posterior).
        embedded_channels: Channels of a token the decoder takes in; `code_channels` where 0.
        decoded: Latent tokens the decoder takes in; `latents` where 0 (fewer where branches share a token).
        positions: Of the latents: their `own`, `none`, or those of the patch `grid` with a level embedding a branch.
        rotary: Patches have learned rotary positions in every block, in the decoder instead of added ones (MAETok).
        decoder_class: The decoder has a class token.
        scrambled: The matrix of latents (N, width) is *reinterpreted* as (width, N) before the projection, without
            transposing it. The first TiTok models were trained so.
        pixels: `linear` (a patch a token), `smoothed` (the same and a 3x3 convolution), `codes` (logits over the table
            of a MaskGIT VQGAN, whose expected row goes through that VQGAN's decoder) or `features` (straight into it).
        text: (tokens, channels) of a text the decoder reads, or None.
        pixel_shape, pixel_table: Of that VQGAN.
    """

    style: Style
    encoder: Size
    decoder: Size
    image_size: int
    patch: int
    latents: int
    code_channels: int
    embedded_channels: int = 0
    decoded: int = 0
    positions: Literal["own", "none", "grid"] = "own"
    rotary: bool = False
    decoder_class: bool = True
    scrambled: bool = False
    pixels: Literal["linear", "smoothed", "codes", "features"] = "linear"
    text: tuple[int, int] | None = None
    pixel_shape: PixelShape = field(default_factory=PixelShape)
    pixel_table: int = 1024

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch


def dinov2_layout(architecture: Mapping[str, Any], *, latents: int, code_channels: int) -> Layout:
    """Read `encoder`, `decoder` (sizes), `image_size` (256) and `patch` (16) of a card; the rest is as `Layout` has it."""
    return Layout(
        style="dinov2",
        encoder=dinov2_size(architecture["encoder"]),
        decoder=dinov2_size(architecture["decoder"]),
        image_size=int(architecture.get("image_size", 256)),
        patch=int(architecture.get("patch", 16)),
        latents=latents,
        code_channels=code_channels,
    )


# -------------------------------------------------------------------------------------------------------------- parts


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


class Scale(nn.Module):
    """A learned factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = _empty(width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP, each with an optional layer scale."""

    def __init__(self, size: Size, style: Style) -> None:
        super().__init__()
        eps, scaled = (1e-5, False) if style == "clip" else (1e-6, True)
        self.norm1, self.attn = nn.LayerNorm(size.width, eps), Attention(size.width, size.heads)
        self.norm2, self.mlp = nn.LayerNorm(size.width, eps), Mlp(size.width, 4 * size.width)
        self.ls1 = Scale(size.width) if scaled else nn.Identity()
        self.ls2 = Scale(size.width) if scaled else nn.Identity()

    def forward(self, x: Tensor, rotate: Rotate | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotate))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Pointwise(nn.Module):
    """A linear map of tokens (B, N, C), stored as a linear layer or as the 1x1 convolution it was published as."""

    def __init__(self, channels: int, out: int, *, as_convolution: bool) -> None:
        super().__init__()
        self.weight = _empty(out, channels, *((1, 1) if as_convolution else ()))
        self.bias = _empty(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Trunk(nn.Module):
    """What encoder and decoder share: class token, positions, norms, blocks."""

    def __init__(self, layout: Layout, size: Size, *, classed: bool = True, added: bool = True) -> None:
        super().__init__()
        self._added = added
        self._grid, self._heads = layout.grid, size.heads
        # timm keeps a batch axis on every learned token, TiTok does not; both broadcast alike.
        lead = () if layout.style == "clip" else (1,)
        eps = 1e-5 if layout.style == "clip" else 1e-6
        self.cls = _empty(*lead, 1, size.width) if classed else None
        self.positions = _empty(*lead, layout.grid**2 + 1, size.width)
        self.rotations = _empty(2, size.depth, size.width // 2) if layout.rotary else None
        self.norm_pre = nn.LayerNorm(size.width, eps) if layout.style == "clip" else nn.Identity()
        self.blocks = nn.ModuleList(Block(size, layout.style) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return 0 if self.cls is None else 1

    def placed(self, patches: Tensor) -> Tensor:
        """Put the class token before (B, N, W), add the positions of a grid of N, resampled where it is not the own."""
        if self.cls is not None:
            patches = torch.cat([self.cls.expand(len(patches), 1, -1), patches], dim=1)
        return patches + self._positions(patches.shape[1] - self.prefix) if self._added else patches

    def run(self, x: Tensor) -> Tensor:
        """Send tokens (B, N, W) through norm and blocks; the last norm is left to the caller, who keeps a part."""
        x = self.norm_pre(x)
        for k, block in enumerate(self.blocks):
            x = block(x) if self.rotations is None else block(x, self._rotation(self.rotations[:, k]))
        return x

    def _positions(self, count: int) -> Tensor:
        positions: Tensor = self.positions
        side = math.isqrt(count)
        if side == self._grid:
            return positions
        first, rest = positions[..., :1, :], positions[..., 1:, :]
        image = rest.reshape(1, self._grid, self._grid, -1).permute(0, 3, 1, 2).float()
        image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)
        return torch.cat([first, image.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)

    def _rotation(self, frequencies: Tensor) -> Rotate:
        """Return the rotation of the patches by column and row times learned frequencies (2, W / 2); others stay."""
        place = torch.arange(self._grid**2, device=frequencies.device)
        at = torch.stack([place % self._grid, place // self._grid], dim=1).float()
        angles = (
            (at @ frequencies.float()).reshape(len(at), self._heads, -1).transpose(0, 1).repeat_interleave(2, dim=-1)
        )
        cos, sin = angles.cos(), angles.sin()
        first, last = self.prefix, self.prefix + len(at)

        def rotate(x: Tensor) -> Tensor:
            turned = rotate_pairs(x[:, :, first:last].float(), cos, sin).to(x.dtype)
            return torch.cat([x[:, :, :first], turned, x[:, :, last:]], dim=2)

        return rotate


class Encoder(Trunk):
    """(B, 3, S, S) to latent tokens (B, N, W)."""

    def __init__(self, layout: Layout, branches: int) -> None:
        super().__init__(layout, layout.encoder)
        width, lead = layout.encoder.width, () if layout.style == "clip" else (1,)
        self._branches = branches
        self.patch = nn.Conv2d(3, width, layout.patch, layout.patch)
        self.latents = _empty(*lead, layout.latents, width)
        self.latent_positions = _empty(*lead, layout.latents, width) if layout.positions == "own" else None
        self.levels = nn.Embedding(1 + branches, width) if layout.positions == "grid" else None

    def forward(self, x: Tensor) -> Tensor:
        patches = self.placed(self.patch(x).flatten(2).transpose(1, 2))
        latents = self.latents.expand(len(x), -1, -1)
        if self.latent_positions is not None:
            latents = latents + self.latent_positions
        if self.levels is not None:
            parts = [self.placed(part)[:, 1:] for part in latents.chunk(self._branches, dim=1)]
            patches, *parts = [part + self.levels.weight[k] for k, part in enumerate([patches, *parts])]
            latents = torch.cat(parts, dim=1)
        h = self.run(torch.cat([patches, latents], dim=1))
        out: Tensor = self.norm(h[:, patches.shape[1] :])
        return out


class Decoder(Trunk):
    """Embedded tokens (B, N, W), and a text (B, T, C) where the model reads one, to patch tokens (B, grid^2, W).

    `kept` (B, N) are the places of the tokens in the whole sequence; by default they are its first ones.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, layout.decoder, classed=layout.decoder_class, added=not layout.rotary)
        width, lead = layout.decoder.width, () if layout.style == "clip" else (1,)
        count = layout.decoded or layout.latents
        self.mask = _empty(1, 1, width)
        self.latent_positions = _empty(*lead, count, width) if layout.positions == "own" else None
        self.levels = nn.Embedding(2, width) if layout.positions == "grid" else None
        self.text = None if layout.text is None else nn.Linear(layout.text[1], width)
        self.text_positions = None if layout.text is None else _empty(layout.text[0], width)

    def forward(self, z: Tensor, text: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        count = self._grid**2
        patches = self.placed(self.mask.expand(len(z), count, -1))
        if self.latent_positions is not None:
            z = z + (self.latent_positions[..., : z.shape[1], :] if kept is None else self.latent_positions[kept])
        if self.levels is not None:
            patches, z = patches + self.levels.weight[0], self.placed(z) + self.levels.weight[1]
        parts = [patches, z]
        if self.text is not None:
            if text is None:
                raise ValueError("this decoder reads a text embedding")
            parts.append(self.text(text) + self.text_positions)
        out: Tensor = self.norm(self.run(torch.cat(parts, dim=1))[:, self.prefix : self.prefix + count])
        return out


class Pixels(nn.Module):
    """Patch tokens (B, grid^2, W) to (B, 3, S, S)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width, self._grid, self._patch = layout.decoder.width, layout.grid, layout.patch
        values = 3 * layout.patch**2
        self.linear = nn.Linear(width, values) if layout.pixels == "linear" else None
        hidden = () if layout.pixels == "smoothed" else (nn.Tanh(),)
        channels = {"smoothed": values, "codes": layout.pixel_table, "features": layout.pixel_shape.latent_channels}
        self.ffn: nn.Sequential | None = None
        self.conv_out: nn.Conv2d | None = None
        self.table: nn.Embedding | None = None
        self.decoder: PixelDecoder | None = None
        if layout.pixels == "linear":
            return
        out = channels[layout.pixels]
        first = Pointwise(width, 2 * width if hidden else out, as_convolution=True)
        last = (Pointwise(2 * width, out, as_convolution=True),) if hidden else ()
        self.ffn = nn.Sequential(first, *hidden, *last)
        if layout.pixels == "smoothed":
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
            return
        self.decoder = PixelDecoder(layout.pixel_shape)
        if layout.pixels == "codes":
            self.table = nn.Embedding(out, layout.pixel_shape.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        grid = (self._grid, self._grid)
        if self.linear is not None:
            return unpatch(self.linear(x), self._patch, grid, channels_last=True)
        x = self.ffn(x) if self.ffn is not None else x
        if self.conv_out is not None:
            out: Tensor = self.conv_out(unpatch(x, self._patch, grid, channels_last=True))
            return out
        if self.table is not None:
            x = x.softmax(-1) @ self.table.weight
        decoded: Tensor = self.decoder(x.transpose(1, 2).reshape(len(x), -1, *grid)) if self.decoder is not None else x
        return decoded


class Autoencoder1d(nn.Module):
    """A one-dimensional tokenizer.

    Args:
        layout: Everything but the quantizer.
        quantizer: A module that is a `TokenQuantizer`.
        branches: Groups the latents fall into, each with a level embedding of its own (grid positions only).
        keep: Tokens of the code that are kept, the first ones; None keeps all.
    """

    def __init__(self, layout: Layout, quantizer: nn.Module, *, branches: int = 1, keep: int | None = None) -> None:
        super().__init__()
        # SoftVQ stores its two projections as linear layers, XQ-GAN as convolutions, TiTok one of each.
        first = layout.style == "clip" or layout.positions == "grid"
        embedded = layout.embedded_channels or layout.code_channels
        self.encoder, self.decoder = Encoder(layout, branches), Decoder(layout)
        self.project = Pointwise(layout.encoder.width, layout.code_channels, as_convolution=first)
        self.quantizer = quantizer
        self.embed = Pointwise(embedded, layout.decoder.width, as_convolution=layout.positions == "grid")
        self.pixels = Pixels(layout)
        self._scrambled, self._keep = layout.scrambled, keep

    def before_quantizer(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) to what the quantizer sees, (B, C, N)."""
        h = self.encoder(x)
        if self._scrambled:
            h = h.reshape(h.shape[0], h.shape[2], h.shape[1]).transpose(1, 2)
        out: Tensor = self.project(h).transpose(1, 2)
        return out

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) to indices (B, K, N) or latents (B, C, N)."""
        quantizer: TokenQuantizer = self.quantizer  # type: ignore[assignment]
        code = quantizer.encode(self.before_quantizer(x))
        return code if self._keep is None else code[..., : self._keep]

    def decode(self, code: Tensor, text: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Map a code, or where the model was trained for that its first tokens or those at `kept`, to (B, 3, S, S)."""
        quantizer: TokenQuantizer = self.quantizer  # type: ignore[assignment]
        z = quantizer.decode(code).transpose(1, 2)
        out: Tensor = self.pixels(self.decoder(self.embed(z), text, kept))
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one codebook of a discrete quantizer."""
        quantizer: Searchable = self.quantizer  # type: ignore[assignment]
        return quantizer.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Map (B, 3, S, S) to what one codebook of a discrete quantizer is searched with, (B, M, D)."""
        quantizer: Searchable = self.quantizer  # type: ignore[assignment]
        return quantizer.seen(self.before_quantizer(x), codebook)


# ------------------------------------------------------------------------------------------------------- key layouts


def clip_names(levels: int) -> tuple[Rule, ...]:
    """Return the rules from this file's keys to TiTok's; `levels` are those of the pixel decoder."""
    return (
        (r"^encoder\.latents$", "latent_tokens"),
        (r"\.cls$", ".class_embedding"),
        (r"\.latent_positions$", ".latent_token_positional_embedding"),
        (r"\.text_positions$", ".text_guidance_positional_embedding"),
        (r"\.positions$", ".positional_embedding"),
        (r"\.text\.", ".text_guidance_proj."),
        (r"\.patch\.", ".patch_embed."),
        (r"\.mask$", ".mask_token"),
        (r"\.norm_pre\.", ".ln_pre."),
        (r"^(encoder|decoder)\.norm\.", r"\1.ln_post."),
        (r"^(encoder|decoder)\.blocks\.(\d+)\.norm([12])\.", r"\1.transformer.\2.ln_\3."),
        (r"^(encoder|decoder)\.blocks\.", r"\1.transformer."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^project\.", "encoder.conv_out."),
        (r"^embed\.", "decoder.decoder_embed."),
        (r"^quantizer\.", "quantize."),
        (r"^pixels\.(ffn|conv_out)\.", r"decoder.\1."),
        (r"^pixels\.table\.", "pixel_quantize.embedding."),
        (r"^pixels\.decoder\.", "pixel_decoder."),
        *naming("1d-tokenizer", levels),
    )


DINOV2_NAMES: tuple[Rule, ...] = (
    (r"\.latents$", ".latent_tokens"),
    (r"\.latent_positions$", ".latent_pos_embed"),
    (r"\.mask$", ".mask_token"),
    (r"\.levels\.", ".lvl_embed."),
    (r"\.cls$", ".model.cls_token"),
    (r"\.positions$", ".model.pos_embed"),
    (r"\.rotations$", ".freqs"),
    (r"\.patch\.", ".model.patch_embed.proj."),
    (r"^(encoder|decoder)\.(blocks|norm)\.", r"\1.model.\2."),
    (r"^project\.", "quant_conv."),
    (r"^embed\.", "post_quant_conv."),
    (r"^pixels\.linear\.", "decoder.to_pixel.model."),
    (r"^quantizer\.branches\.", "quantizes."),
    (r"^quantizer\.", "quantize."),
)
"""The rules from this file's keys to those of SoftVQ and XQ-GAN."""
