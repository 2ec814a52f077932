"""KARL: one pass decides how many of its one-dimensional tokens an image needs for an error that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Neighbours, Stream, Weights

from .nn.checkpoint import dtype_of
from .nn.codebooks import CodebookTokenizer
from .nn.keynames import published_as
from .nn.maskgit_cnn import Shape, Stage, TableAutoencoder, naming
from .nn.network import NetworkTokenizer, load_network
from .nn.quantize import VectorQuantizer, lookup, nearest
from .nn.vit2d import OPEN_CLIP_BLOCK, TransformerEncoder, renamed, transformer

_KEPT = "kept"
_ERRORS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1,
    0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38,
)  # fmt: skip


class _Decoder(nn.Module):
    """Masked grid of the base tokenizer and latents to logits over its codes."""

    def __init__(self, width: int, layers: int, heads: int, base_codes: int) -> None:
        super().__init__()
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, base_codes))

    def forward(self, masked: Tensor, latents: Tensor, kept: Tensor | None) -> Tensor:
        count = masked.shape[1]
        x = self.ln_pre(torch.cat([masked, latents], dim=1))
        seen = None if kept is None else F.pad(kept, (count, 0), value=True)[:, None, None]
        for block in self.transformer:
            x = block(x, mask=seen)
        out: Tensor = self.ffn(self.ln_post(x[:, :count]))
        return out


class Karl(nn.Module):
    """Image tokens, an embedding of the error that is asked for and latents through an encoder, which halts some latents.

    A token that is halted (probability above 0.75) is hidden from the decoder. The code holds the indices of the others, in
    order, and which places they have.

    Reference: Duggal et al., "Single-pass Adaptive Image Tokenization for Minimum Program Search", arXiv:2507.07995.

    Args:
        side: Of the base tokenizer's grid.
        patch: Pixels a place of it.
        width: Of both transformers.
        layers: Of each.
        heads: Of their attention.
        most: Latents there are positions for.
        positions: Side of the learned grid that positions are taken from.
        codebook_size: Of the latents.
        code: Channels of it.
        base: `nn.maskgit_cnn.Shape` of the base tokenizer.
        base_codes: Its codebook.
        tokens: Latents that are tried.
        quality: Mean absolute error that is asked for.
    """

    def __init__(
        self,
        side: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        most: int,
        positions: int,
        codebook_size: int,
        code: int,
        base: Mapping[str, Any],
        base_codes: int,
        tokens: int,
        quality: float,
    ) -> None:
        super().__init__()
        shape = Shape(**{**base, "multipliers": tuple(base["multipliers"])})
        self._side, self._tokens, self._quality = side, tokens, _ERRORS.index(quality)
        self.encoder, self.decoder = (
            TransformerEncoder(width, layers, heads),
            _Decoder(width, layers, heads, base_codes),
        )
        self.encoder_positional_embedding = nn.Parameter(torch.empty(width, positions, positions))
        self.decoder_positional_embedding = nn.Parameter(torch.empty(width, positions, positions))
        self.encoder_ln_pre, self.encoder_ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.encoder_ln_post_halt = nn.LayerNorm(width)
        self.pre_quantizer_mlp = nn.Linear(width, code)
        self.halting_mlp = nn.Sequential(nn.Linear(width, 512), nn.Tanh(), nn.Linear(512, 1))
        self.decoder_mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_embed = nn.Linear(code, width)
        self.decoder_latent_tokens_timestep_embed = nn.Parameter(torch.empty(most, width))
        self.latent_tokens = nn.Parameter(torch.empty(most, width))
        self.patch_embed = nn.Conv2d(3, width - shape.latent_channels, patch, stride=patch)
        self.rec_loss_embeddings = nn.Parameter(torch.empty(len(_ERRORS), width))
        self.quantize = VectorQuantizer(codebook_size, code, "cosine")
        vqgan = TableAutoencoder(shape, base_codes)
        # MAGE's middle has two blocks, whatever the levels have.
        vqgan.encoder.mid = Stage(shape.levels[-1], shape.levels[-1], 2)
        vqgan.decoder.mid = Stage(shape.levels[-1], shape.levels[-1], 2)
        self.base_tokenizer = nn.ModuleDict({"vqgan": vqgan})

    def _places(self, grid: Tensor) -> Tensor:
        return F.interpolate(grid[None], size=(self._side, self._side)).flatten(2).transpose(1, 2)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 3, H, W) in [0, 1] to what the table is searched with, (B, tokens, code), and which are kept."""
        vqgan: Any = self.base_tokenizer["vqgan"]
        features = torch.cat([self.patch_embed(x), vqgan.encoder(x)], dim=1).flatten(2).transpose(1, 2)
        image = features + self._places(self.encoder_positional_embedding)
        asked = self.rec_loss_embeddings[self._quality].expand(len(x), 1, -1)
        latents = self.latent_tokens[: self._tokens].expand(len(x), -1, -1)
        h = self.encoder(self.encoder_ln_pre(torch.cat([asked, image, latents], dim=1)))[:, -self._tokens :]
        halted = self.halting_mlp(self.encoder_ln_post_halt(h)).sigmoid()[..., 0] > 0.75
        return self.pre_quantizer_mlp(self.encoder_ln_post(h)), ~halted

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self.quantize.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with, the kept tokens first; behind them stands the vector of entry 0."""
        del codebook
        latents, kept = self.tokens(x)
        moved, lengths = packed(latents, kept)
        filler = self.quantize.embedding.weight[0]
        return torch.where(_valid(lengths, moved.shape[1])[..., None], moved, filler)

    def image(self, indices: Tensor, kept: Tensor | None) -> Tensor:
        """Map indices (B, N) at their places, those of halted tokens unread, to (B, 3, H, W), nominally in [0, 1]."""
        vqgan: Any = self.base_tokenizer["vqgan"]
        rows = lookup(indices, self.quantize.embedding.weight, normalise=True)
        latents = self.decoder_embed(rows) + self.decoder_latent_tokens_timestep_embed[: indices.shape[1]]
        masked = (self.decoder_mask_token + self._places(self.decoder_positional_embedding)).expand(len(rows), -1, -1)
        code = self.decoder(masked, latents, kept).softmax(-1) @ vqgan.quantize.embedding.weight
        out: Tensor = vqgan.decoder(torch.unflatten(code.transpose(1, 2), 2, (self._side, self._side)))
        return out


def _valid(lengths: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def packed(rows: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Move what is kept of (B, N, ...) to the front, in order, and zeros behind it; return that and how many they are."""
    order = (~kept).long().argsort(dim=1, stable=True)
    lengths = kept.sum(1)
    index = order.view(*order.shape, *([1] * (rows.ndim - 2))).expand_as(rows)
    moved = rows.gather(1, index)
    valid = _valid(lengths, rows.shape[1]).view(*order.shape, *([1] * (rows.ndim - 2)))
    return torch.where(valid, moved, torch.zeros_like(moved)), lengths


class KarlTokenizer(CodebookTokenizer):
    """A ragged stream of the kept tokens, and beside it, at a bit a place, which places they have."""

    def __init__(self, network: NetworkTokenizer) -> None:
        super().__init__(network, network.module)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in [0, 1] to one stream (B, tokens) with lengths."""
        net = self._module
        latents, kept = net.tokens(x.to(dtype_of(net)))
        indices, lengths = packed(nearest(latents, net.quantize.embedding.weight, "cosine"), kept)
        stream = Stream("0", self.spec.codebook_size[0], indices, lengths)
        return Code((stream,), side={_KEPT: kept}, side_bits=kept.shape[1])

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 3, H, W) float32; without the places of its tokens, they are the first ones, none halted."""
        indices, kept = code.streams[0].indices, code.side.get(_KEPT)
        if kept is not None:
            # The k-th kept place holds the k-th index.
            indices = indices.gather(1, (kept.long().cumsum(1) - 1).clamp(min=0))
        signal: Tensor = self._module.image(indices, kept)
        return signal.float()


def tokenizer(card: Card, weights: Weights) -> KarlTokenizer:
    """Load the moving averages of a checkpoint without its discriminators."""
    arch: dict[str, Any] = dict(card.architecture)
    loaded = load_network(
        card,
        weights,
        partial(Karl, **arch, tokens=int(card.options["tokens"]), quality=float(card.options["quality"])),
        inside=("ema",),
        layouts=[renamed(OPEN_CLIP_BLOCK), published_as(naming("mage", len(arch["base"]["multipliers"])))],
        drop=["gan_losses.*"],
    )
    return KarlTokenizer(loaded)
