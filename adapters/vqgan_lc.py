"""VQGAN-LC: taming's network whose codebook is a linear projection of a hundred thousand frozen CLIP features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import TableNeighbours
from .nn.network import load_network
from .nn.quantize import lookup, nearest
from .nn.taming import Decoder, Encoder, Trunk


class VqganLc(nn.Module):
    """Encoder, projected codebook, decoder.

    Reference: Zhu et al., arXiv:2406.11837, zh460045050/VQGAN-LC.
    """

    def __init__(self, trunk: Mapping[str, Any], embed_dim: int, entries: int, features: int) -> None:
        super().__init__()
        shape = Trunk(**trunk)
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quant_conv = nn.Conv2d(shape.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, shape.z_channels, 1)
        self.tok_embeddings = nn.Embedding(entries, features)
        self.codebook_projection = nn.Linear(features, embed_dim)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to what is quantized: (B, embed_dim, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(x))
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the projected table."""
        del codebook
        return TableNeighbours(self.codebook_projection(self.tok_embeddings.weight))

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the projected table is searched with, (B, h, w, embed_dim)."""
        del codebook
        return self.features(x).movedim(1, -1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, 1, h, w)."""
        table = self.codebook_projection(self.tok_embeddings.weight)
        return nearest(self.features(x).movedim(1, -1), table).unsqueeze(1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, H, W), nominally in [-1, 1]."""
        code = self.codebook_projection(lookup(indices[:, 0], self.tok_embeddings.weight)).movedim(-1, 1)
        out: Tensor = self.decoder(self.post_quant_conv(code))
        return out


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return VqganLc(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a training checkpoint without its discriminator and perceptual network."""
    loaded = load_network(
        card,
        weights,
        lambda: network(card.architecture),
        inside=("state_dict",),
        or_inside=[("model",)],
        drop=["discriminator.*", "perceptual_loss.*", "loss.*"],
    )
    return CodebookTokenizer(loaded, loaded.module)
