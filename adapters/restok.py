"""ResTok: one-dimensional tokens pooled coarse to fine from an image, whose prefixes decode to the whole picture."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.checkpoint import State
from .nn.codebooks import DroppingTokenizer
from .nn.keynames import published_as
from .nn.maskgit_cnn import Decoder as PixelDecoder
from .nn.maskgit_cnn import Encoder as PixelEncoder
from .nn.maskgit_cnn import Shape, naming
from .nn.network import load_network
from .nn.quantize import VectorQuantizer, lookup, nearest
from .nn.vit2d import Attention, Block, Mlp, Rotate, imagenet, layer_norm, rotate_pairs

_STAGES = 4


def _levels(count: int) -> list[tuple[int, int]]:
    """Return the (h, w) pooled to at each level: one token, one more, then as many as all before, up to `count`."""
    grids, tokens = [(1, 1)], 1
    while tokens < count:
        root = 1 << ((tokens.bit_length() - 1) // 2)
        grids.append((root, tokens // root))
        tokens *= 2
    return grids


def _places(grids: Sequence[tuple[int, int]], tokens: int, *, tokens_first: bool) -> Tensor:
    """Return (row, column) of every position, (N, 2); tokens have their index twice; each part starts after the last."""
    line = torch.arange(tokens)[:, None].expand(tokens, 2)
    parts, offset = ([line], tokens) if tokens_first else ([], 0)
    for h, w in grids:
        parts.append(torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(-1, 2) + offset)
        offset += h * w
    return torch.cat(parts if tokens_first else [*parts, line + offset])


def _rotation(places: Tensor, head_dim: int, device: torch.device) -> Rotate:
    half = head_dim // 2
    rates = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
    angles = (places.double()[:, :, None] * rates).flatten(1).repeat_interleave(2, dim=-1)
    cos, sin = angles.cos().float().to(device), angles.sin().float().to(device)
    return lambda x: rotate_pairs(x.float(), cos, sin).to(x.dtype)


def _block(width: int, heads: int) -> Block:
    norm = layer_norm(1e-5)
    return Block(norm, width, Attention(width, heads, head_norm=norm), Mlp(width, 4 * width), scaled=True)


def _vectors(count: int, width: int) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.empty(1, width)) for _ in range(count)])


class _Encoder(nn.Module):
    """Image tokens are halved three times on the way; a position sees its own block and the earlier ones, coarse first."""

    def __init__(
        self, width: int, layers: int, heads: int, features: int, code: int, levels: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        self._levels, self._head = levels, width // heads
        self._merges = {int(i / _STAGES * layers) - 1 for i in range(1, _STAGES)}
        self.patch_embed = nn.Conv2d(features, width, 1)
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.level_embedding = _vectors(_STAGES, width)
        self.latent_token_level_embedding = _vectors(len(levels), width)
        self.conv_out = nn.ModuleList(nn.Conv2d(width, code, 1) for _ in levels)

    def _pooled(self, grid: Tensor) -> Tensor:
        """Pool a map level by level, each from what the coarser ones left: (B, N, width)."""
        parts = []
        for size, embedding in zip(self._levels, self.latent_token_level_embedding, strict=True):
            pooled = F.interpolate(grid, size, mode="area")
            grid = grid - F.interpolate(pooled, grid.shape[2:], mode="nearest")
            parts.append(pooled.flatten(2).transpose(1, 2) + embedding)
        return torch.cat(parts, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        grid = self.patch_embed(features)
        latents = self._pooled(grid)
        count = latents.shape[1]
        x = self.ln_pre(torch.cat([grid.flatten(2).transpose(1, 2) + self.level_embedding[0], latents], dim=1))
        grids = [(grid.shape[2], grid.shape[3])]
        blocks: Iterable[Any] = self.blocks
        for i, block in enumerate(blocks):
            sizes = [h * w for h, w in (*grids, *self._levels)]
            order = torch.arange(len(sizes), device=x.device).repeat_interleave(torch.tensor(sizes, device=x.device))
            rotate = _rotation(_places(grids, count, tokens_first=False), self._head, x.device)
            x = x + block.gamma1 * block.attn(block.norm1(x), rotate, order[:, None] >= order)
            if i in self._merges:
                x = self._merged(x, sizes[0])
            x = x + block.gamma2 * block.mlp(block.norm2(x))
            if i in self._merges:
                half = sizes[0] // 2
                x = torch.cat([x[:, :half] + self.level_embedding[len(grids)], x[:, half:]], dim=1)
                grids.insert(0, (grids[0][0], grids[0][1] // 2))
        flat = self.ln_post(x[:, -count:])
        # Published so: (N, width) is read as (width, N), not transposed.
        line = flat.reshape(len(flat), flat.shape[2], count, 1)
        parts = line.split_with_sizes([h * w for h, w in self._levels], 2)
        return torch.cat([conv(part) for conv, part in zip(self.conv_out, parts, strict=True)], dim=2).flatten(2)

    @staticmethod
    def _merged(x: Tensor, count: int) -> Tensor:
        """Put every other of the first `count` tokens in front, and leave the rest of them as differences."""
        image = x[:, :count]
        merged = image[:, ::2]
        return torch.cat([merged, image - merged.repeat_interleave(2, dim=1), x[:, count:]], dim=1)


class _Decoder(nn.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        features: int,
        code: int,
        levels: Sequence[tuple[int, int]],
        side: int,
    ) -> None:
        super().__init__()
        self._levels, self._head, self._side = levels, width // heads, side
        self.latent_mask_token = nn.Parameter(torch.empty(1, 1, code))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Conv2d(width, features, 1)
        self.latent_token_level_embedding = _vectors(len(levels), width)
        self.decoder_embed = nn.ModuleList(nn.Linear(code, width) for _ in levels)

    def forward(self, code: Tensor, kept: Tensor | None) -> Tensor:
        sizes = [h * w for h, w in self._levels]
        batch, count, side = len(code), sum(sizes), self._side
        places = torch.arange(code.shape[1], device=code.device).expand(batch, -1) if kept is None else kept
        line = self.latent_mask_token.expand(batch, count, -1)
        parts = line.scatter(1, places[..., None].expand_as(code), code).split_with_sizes(sizes, dim=1)
        rooms = zip(parts, self.decoder_embed, self.latent_token_level_embedding, strict=True)
        x = torch.cat([embed(part) + level for part, embed, level in rooms], dim=1)
        x = self.ln_pre(torch.cat([x, self.mask_token.expand(batch, side**2, -1)], dim=1))
        rotate = _rotation(_places([(side, side)], count, tokens_first=True), self._head, x.device)
        for block in self.blocks:
            x = block(x, rotate)
        out: Tensor = self.ffn(torch.unflatten(self.ln_post(x[:, count:]).transpose(1, 2), 2, (side, side)))
        return out


class ResTok(nn.Module):
    """Convolutional encoder, transformer with token merging, codebook (l2-normalised), transformer, convolutional decoder.

    Args:
        tokens: Tokens of the full code; `keep` of them, coarse to fine, are emitted.

    Reference: ResTok, arXiv:2601.03955, Kwai-Kolors/ResTok.
    """

    def __init__(
        self,
        image_size: int,
        tokens: int,
        codebook_size: int,
        code: int,
        width: int,
        layers: int,
        heads: int,
        pixel: Mapping[str, Any],
        keep: int,
    ) -> None:
        super().__init__()
        shape, levels = Shape(**{**pixel, "multipliers": tuple(pixel["multipliers"])}), _levels(tokens)
        features, self._keep = shape.latent_channels, keep
        self.pixel_encoder, self.pixel_decoder = PixelEncoder(shape), PixelDecoder(shape)
        self.encoder = _Encoder(width, layers, heads, features, code, levels)
        self.decoder = _Decoder(width, layers, heads, features, code, levels, image_size // 16)
        self.quantize = VectorQuantizer(codebook_size, code, "cosine")

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to what is quantized: (B, code, tokens)."""
        mean, std = imagenet(x)
        out: Tensor = self.encoder(self.pixel_encoder((x - mean) / std))
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self.quantize.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with, (B, keep, code)."""
        del codebook
        return self.features(x).transpose(1, 2)[:, : self._keep]

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to indices (B, 1, keep), coarse to fine."""
        table = self.quantize.embedding.weight
        return nearest(self.features(x).transpose(1, 2), table, "cosine")[:, None, : self._keep]

    def decode(self, indices: Tensor, kept: Tensor | None = None) -> Tensor:
        """Map indices (B, 1, n) to (B, 3, H, W), nominally in [0, 1]; tokens that are not there are masked.

        Args:
            indices: The first n tokens, or those at `kept`.
            kept: (B, n) places of the tokens.
        """
        table = self.quantize.embedding.weight
        out: Tensor = self.pixel_decoder(self.decoder(lookup(indices[:, 0], table, normalise=True), kept))
        return out


def _layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Join the published query and value biases into one, with zeros for the keys."""
    del wanted
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        key = name.removeprefix("_orig_mod.").replace(".gamma_1", ".gamma1").replace(".gamma_2", ".gamma2")
        stem = key.removesuffix(".q_bias")
        if stem != key and f"{name.removesuffix('.q_bias')}.v_bias" in state:
            values = state[f"{name.removesuffix('.q_bias')}.v_bias"]
            out[f"{stem}.qkv.bias"] = torch.cat([value, torch.zeros_like(value), values])
        elif not key.endswith(".v_bias") or f"{name.removesuffix('.v_bias')}.q_bias" not in state:
            out[key] = value
    return out


def tokenizer(card: Card, weights: Weights) -> DroppingTokenizer:
    """Load a published model without its feature-supervision heads; `tokens` of the options are emitted."""
    shape = dict(card.architecture)
    loaded = load_network(
        card,
        weights,
        lambda: ResTok(**shape, keep=int(card.options["tokens"])),
        layouts=[_layout, published_as(naming("1d-tokenizer", len(shape["pixel"]["multipliers"])))],
        drop=["foundation_model.*", "vf_proj.*", "vf_proj_dec.*", "decoder.feat_mask_token"],
    )
    return DroppingTokenizer(loaded, loaded.module)
