"""Instella-T2I's binary autoencoder: 128 words of 64 bits from a transformer that halves its grid of patches on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.bits import bits_of, index_of
from .nn.checkpoint import dtype_of
from .nn.codebooks import CodebookTokenizer
from .nn.keynames import Rule, published_as
from .nn.neighbours import BitNeighbours
from .nn.network import load_network
from .nn.vit2d import rotate_halves, unpatch

_HEAD = 64
_AXES = (8, 28, 28)
_EPS = 1e-6


def _turns(tokens: int, side: int, reach: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin (N, 64) of tokens, then of the cells of a grid in raster order.

    Tokens are at (n, 0, 0), cells at (0, row, column), rows and columns stretched over 0 to `reach` - 1. Angles are written
    for neighbouring pairs of channels and applied to channels half a head apart: so does the official code.
    """
    along = torch.arange(side, dtype=torch.float32) / (side - 1) * (reach - 1)
    cells = torch.stack([torch.zeros(side, side), *torch.meshgrid(along, along, indexing="ij")], dim=-1)
    words = F.pad(torch.arange(tokens, dtype=torch.float32)[:, None], (0, 2))
    places = torch.cat([words, cells.flatten(0, 1)]).double()
    angles = [
        places[:, axis, None] * 10_000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        for axis, size in enumerate(_AXES)
    ]
    turned = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return turned.cos().float().to(device), turned.sin().float().to(device)


class _Block(nn.Module):
    """Pre-norm attention with norms of each head's queries and keys, and a gated MLP; no biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=_EPS), nn.RMSNorm(width, eps=_EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(_HEAD, eps=_EPS), nn.RMSNorm(_HEAD, eps=_EPS)
        self.gate, self.up = nn.Linear(width, 4 * width, bias=False), nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Map (B, N, width) to the same shape."""
        h = self.norm1(x)
        q, k, v = (torch.unflatten(part(h), -1, (-1, _HEAD)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (rotate_halves(part.float(), *turns).to(v.dtype) for part in (self.norm_q(q), self.norm_k(k)))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class _Halve(nn.Module):
    """A strided convolution beside an average over two by two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        out: Tensor = self.conv(x) + F.avg_pool2d(x, 2)
        return out


class _Double(nn.Module):
    """A convolution whose channels are laid out as two by two, beside a repetition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2) + F.interpolate(x, scale_factor=2.0, mode="nearest")


class _Trunk(nn.Module):
    """Blocks over [tokens, cells], after some of which the grid of cells is resized."""

    def __init__(self, width: int, depth: int, resize: Sequence[int], make: type[_Halve] | type[_Double]) -> None:
        super().__init__()
        self._resize, self._factor = tuple(resize), 0.5 if make is _Halve else 2.0
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.resizers = nn.ModuleList(make(width) for _ in resize)
        self.norm = nn.RMSNorm(width, eps=_EPS)

    def forward(self, tokens: Tensor, cells: Tensor, reach: float) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, width) and cells (B, width, side, side), `reach` long, to normed tokens and cells (B, M, width)."""
        count, side = tokens.shape[1], cells.shape[2]
        h, resizers = torch.cat([tokens, cells.flatten(2).transpose(1, 2)], dim=1), iter(self.resizers)
        turns = _turns(count, side, reach, h.device)
        for index, block in enumerate(self.blocks):
            h = block(h, turns)
            if index not in self._resize:
                continue
            cells = next(resizers)(torch.unflatten(h[:, count:].transpose(1, 2), 2, (side, side)))
            h = torch.cat([h[:, :count], cells.flatten(2).transpose(1, 2)], dim=1)
            side, reach = cells.shape[2], reach * self._factor
            turns = _turns(count, side, reach, h.device)
        h = self.norm(h)
        return h[:, :count], h[:, count:]


class Instella(nn.Module):
    """Encoder, bits and decoder. Reference: arXiv:2506.21022, AMD-AIG-AIMA/Instella-T2I.

    Args:
        size: Height and width of the image.
        reach: Pixels a side over which places of patches are stretched, whatever the size.
        patch: Side of a patch.
        tokens: How many.
        bits: Of a codebook.
        groups: Codebooks a token; bit n of codebook k is value k * bits + n of a token.
        encoder: `width`, `depth` and `resize`, the blocks after which the grid is halved.
        decoder: The same; there it is doubled.
    """

    def __init__(
        self,
        size: int,
        reach: int,
        patch: int,
        tokens: int,
        bits: int,
        groups: int,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self._grid, self._reach, self._patch = size // patch, reach / patch, patch
        self._bits, self._groups, self._halvings = bits, groups, len(decoder["resize"])
        inner, outer, values = encoder["width"], decoder["width"], bits * groups
        self.patch_embedder = nn.Conv2d(3, inner, patch, stride=patch)
        self.latent_tokens = nn.Parameter(torch.empty(1, tokens, inner))
        self.encoder = _Trunk(**encoder, make=_Halve)
        self.proj_out = nn.Linear(inner, inner)
        self.to_bits = nn.Linear(inner, values)
        self.embed = nn.Parameter(torch.empty(values, inner))
        self.input_layer = nn.Sequential(nn.RMSNorm(inner, eps=_EPS), nn.Linear(inner, outer))
        self.mask_tokens = nn.Parameter(torch.empty(1, 1, outer))
        self.decoder = _Trunk(**decoder, make=_Double)
        self.to_pixel = nn.Linear(outer, 3 * patch**2)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to (B, tokens, groups, bits), whose signs are the code."""
        cells = self.patch_embedder(x)
        tokens, _ = self.encoder(self.latent_tokens.expand(len(x), -1, -1), cells, self._reach)
        return torch.unflatten(self.to_bits(self.proj_out(tokens)), -1, (self._groups, self._bits))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to indices (B, groups, tokens)."""
        return index_of(self.features(x) > 0, dim=3, low_first=True).transpose(1, 2)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, groups, tokens) to (B, 3, size, size), nominally in [-1, 1]."""
        bits = bits_of(indices.transpose(1, 2), self._bits, dim=3, low_first=True).flatten(2)
        tokens = self.input_layer(bits.to(dtype_of(self)) @ self.embed)
        smaller = 2 * self._halvings or 1
        side = self._grid // smaller
        cells = self.mask_tokens.transpose(1, 2)[..., None].expand(len(tokens), -1, side, side)
        _, found = self.decoder(tokens, cells, self._reach / smaller)
        return unpatch(self.to_pixel(found), self._patch, (self._grid, self._grid), channels_last=True)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near a word: words with other bits."""
        del codebook
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the values (B, tokens, bits) whose signs are one codebook's words."""
        return self.features(x)[:, :, int(codebook)]


RULES: Sequence[Rule] = (
    (r"^(patch_embedder|latent_tokens|proj_out)\b", r"encoder.\1"),
    (r"^(input_layer|mask_tokens)\b", r"decoder.\1"),
    (r"^to_bits\.", "quantizer.proj.0."),
    (r"^embed$", "quantizer.embed"),
    (r"^encoder\.resizers\.", "encoder.down_layers."),
    (r"^decoder\.resizers\.", "decoder.up_layers."),
    (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."),
    (r"\.blocks\.", ".transformer_blocks."),
    (r"(\.\d+)\.norm1\.", r"\1.input_layernorm."),
    (r"(\.\d+)\.norm2\.", r"\1.post_attention_layernorm."),
    (r"(\.\d+)\.([qkv])\.", r"\1.attn.\2_proj."),
    (r"(\.\d+)\.out\.", r"\1.attn.o_proj."),
    (r"(\.\d+)\.norm_([qk])\.", r"\1.attn.norm_\2."),
    (r"(\.\d+)\.(gate|up|down)\.", r"\1.mlp.\2_proj."),
)
"""From the module's key names to the published ones."""


def network(architecture: Mapping[str, Any], size: int) -> Instella:
    """Build the module a card's architecture describes, for images of one size."""
    return Instella(size, **architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the published autoencoder (role `model`) for images of `size`.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    make = partial(network, card.architecture, int(card.options["size"]))
    loaded = load_network(card, weights, make, layouts=[published_as(RULES)])
    return CodebookTokenizer(loaded, loaded.module)
