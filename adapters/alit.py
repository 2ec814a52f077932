"""ALIT: tokens added thirty-two at a time by a recurrent encoder over the features of a two-dimensional VQGAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.codebooks import CodebookTokenizer
from .nn.keynames import published_as
from .nn.maskgit_cnn import Shape, Stage, TableAutoencoder, naming
from .nn.network import load_network
from .nn.quantize import VectorQuantizer, lookup, nearest
from .nn.vit2d import OPEN_CLIP_BLOCK, TransformerEncoder, renamed, transformer


class _Decoder(nn.Module):
    """Latents and the masked grid of the base tokenizer to logits over its codes."""

    def __init__(self, width: int, layers: int, heads: int, code: int, most: int, base_codes: int) -> None:
        super().__init__()
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(most, width))
        self.decoder_embed = nn.Linear(code, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, base_codes))

    def forward(self, code: Tensor, masked: Tensor) -> Tensor:
        latents = self.decoder_embed(code) + self.latent_token_positional_embedding[: code.shape[1]]
        x = self.ln_pre(torch.cat([masked.expand(len(code), -1, -1), latents], dim=1))
        for block in self.transformer:
            x = block(x)
        out: Tensor = self.ffn(self.ln_post(x[:, 1 : masked.shape[1]]))
        return out


class Alit(nn.Module):
    """Encoder, base VQGAN and decoder; after every pass the image tokens that are already explained are masked at random.

    An image token is masked with the probability the decoder gives to its code of the base tokenizer, where that is at
    least `threshold`; so the code draws from torch's global generator, as published.

    Args:
        passes: Of the encoder; each adds `step` tokens.
        most: Tokens the decoder has positions for.
        limit: Passes the positions of the encoder were made for.

    Reference: Duggal et al., "Adaptive Length Image Tokenization via Recurrent Allocation", arXiv:2411.02393.
    """

    def __init__(
        self,
        image_size: int,
        width: int,
        layers: int,
        heads: int,
        step: int,
        limit: int,
        most: int,
        codebook_size: int,
        code: int,
        base: Mapping[str, Any],
        base_codes: int,
        passes: int,
        threshold: float = 0.55,
    ) -> None:
        super().__init__()
        shape = Shape(**{**base, "multipliers": tuple(base["multipliers"])})
        self._side, self._passes, self._threshold = image_size // 16, passes, threshold
        count = self._side**2 + 1
        self.encoder_ln_pre, self.encoder_ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.encoder_ln_recursive = nn.LayerNorm(width)
        self.pre_quantizer_mlp = nn.Linear(width, code)
        self.encoder = TransformerEncoder(width, layers, heads)
        self.decoder = _Decoder(width, layers, heads, code, most, base_codes)
        self.encoder_positional_embedding = nn.Parameter(torch.empty(count, width))
        self.encoder_class_embedding = nn.Parameter(torch.empty(1, width))
        self.encoder_mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_positional_embedding = nn.Parameter(torch.empty(count, width))
        self.decoder_class_embedding = nn.Parameter(torch.empty(1, width))
        self.decoder_mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.latent_tokens = nn.Parameter(torch.empty(step, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(step, width))
        self.timestep_embedding = nn.Parameter(torch.empty(limit, step, width))
        self.patch_embed = nn.Conv2d(3, width - shape.latent_channels, 16, stride=16)
        self.quantize = VectorQuantizer(codebook_size, code, "cosine")
        vqgan = TableAutoencoder(shape, base_codes)
        # MAGE's middle has two blocks, whatever the levels have.
        vqgan.encoder.mid = Stage(shape.levels[-1], shape.levels[-1], 2)
        vqgan.decoder.mid = Stage(shape.levels[-1], shape.levels[-1], 2)
        self.base_tokenizer = nn.ModuleDict({"vqgan": vqgan})

    def _logits(self, indices: Tensor) -> Tensor:
        """Decode indices (B, n) to logits over the base tokenizer's codes (B, side * side, base_codes)."""
        mask = self.decoder_mask_token.expand(1, self._side**2, -1)
        masked = torch.cat([self.decoder_class_embedding[None], mask], dim=1) + self.decoder_positional_embedding
        out: Tensor = self.decoder(lookup(indices, self.quantize.embedding.weight, normalise=True), masked)
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self.quantize.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with after the last pass, (B, passes * step, D)."""
        del codebook
        return self._rolled(x)[0]

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to indices (B, 1, passes * step)."""
        return self._rolled(x)[1][:, None]

    def _rolled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the table is searched with after the last pass, and the indices found."""
        vqgan: Any = self.base_tokenizer["vqgan"]
        features = vqgan.encoder(x)
        truth = nearest(features.movedim(1, -1), vqgan.quantize.embedding.weight).flatten(1)
        tokens = torch.cat([features, self.patch_embed(x)], dim=1).flatten(2).transpose(1, 2)
        first = self.encoder_class_embedding.expand(len(x), 1, -1)
        image = torch.cat([first, F.normalize(tokens, dim=-1)], dim=1) + self.encoder_positional_embedding
        fresh = (self.latent_tokens + self.latent_token_positional_embedding).expand(len(x), -1, -1)
        h = self.encoder_ln_pre(torch.cat([image, fresh + self.timestep_embedding[0]], dim=1))
        table, count = self.quantize.embedding.weight, image.shape[1]
        for step in range(self._passes):
            h = self.encoder(h)
            latents = self.pre_quantizer_mlp(self.encoder_ln_post(h[:, count:]))
            indices = nearest(latents, table, "cosine")
            if step + 1 < self._passes:
                sure = self._logits(indices).softmax(-1).gather(2, truth[..., None])
                drop = (torch.bernoulli(sure) > 0) & (sure >= self._threshold)
                mask = self.encoder_positional_embedding[1:] + self.encoder_mask_token
                kept = torch.where(drop, mask, h[:, 1:count])
                more = fresh + self.timestep_embedding[step + 1]
                h = self.encoder_ln_recursive(torch.cat([h[:, :1], kept, h[:, count:], more], dim=1))
        return latents, indices

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, n) to (B, 3, H, W), nominally in [0, 1], through the expected code of the base tokenizer."""
        vqgan: Any = self.base_tokenizer["vqgan"]
        code = self._logits(indices[:, 0]).softmax(-1) @ vqgan.quantize.embedding.weight
        out: Tensor = vqgan.decoder(torch.unflatten(code.transpose(1, 2), 2, (self._side, self._side)))
        return out


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the moving averages of a checkpoint without its discriminators; `tokens` of the options fixes the passes."""
    shape = dict(card.architecture)
    loaded = load_network(
        card,
        weights,
        lambda: Alit(**shape, passes=int(card.options["tokens"]) // shape["step"]),
        inside=("ema",),
        layouts=[renamed(OPEN_CLIP_BLOCK), published_as(naming("mage", len(shape["base"]["multipliers"])))],
        drop=["gan_losses.*"],
    )
    return CodebookTokenizer(loaded, loaded.module)
