"""GigaTok and ReTok: LlamaGen's convolutions around transformers that write the feature map into a row of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.latent import LatentTokenizer
from .nn.llamagen import fill
from .nn.qformer import Reader, Size, Writer
from .nn.quantize import VectorQuantizer
from .nn.taming import Decoder, Encoder, Trunk, official_key

_SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "small": Size(512, 6, 8),
        "base": Size(768, 12, 12),
        "large": Size(1024, 24, 16),
        "xl": Size(1280, 36, 20),
        "xxl": Size(1536, 48, 24),
    }
)


class GigaTok(nn.Module):
    """CNN, transformer to N tokens, l2-normalised table, transformer to a map, CNN. Xiong et al., 2025 (arXiv:2504.08736).

    Args:
        encoder: Size of the reading transformer: a name, or [width, depth, heads].
        decoder: Of the writing one.
        codebook_size: Rows of the table.
        tokens: N.
        kept: Tokens that are emitted, the first ones.
        image_size: Side of the image in pixels; the learned positions fix it.
        ch: Channels of the finest level of the CNNs.
        z_channels: Channels of the feature map and of the tokens.
        embed_dim: Channels of a row.
        doubled_from: See `nn.qformer.Reader`; 32 in ReTok.
    """

    def __init__(
        self,
        encoder: str | list[int],
        decoder: str | list[int],
        codebook_size: int,
        *,
        tokens: int = 256,
        kept: int = 256,
        image_size: int = 256,
        ch: int = 128,
        z_channels: int = 256,
        embed_dim: int = 8,
        doubled_from: int = 0,
    ) -> None:
        super().__init__()
        mult = (1, 1, 2, 2, 4)
        trunk = Trunk(ch, mult, 2, z_channels, mid_attention=False, adaptive_norm=True, depth_to_space=True)
        side = image_size // 2 ** (len(mult) - 1)
        self.kept = kept
        self.encoder, self.decoder = Encoder(trunk), Decoder(trunk)
        self.s2to1encoder = Reader(_size(encoder), z_channels, side, tokens, doubled_from)
        self.s1to2decoder = Writer(_size(decoder), z_channels, side, tokens, doubled_from)
        self.quantize = VectorQuantizer(codebook_size, embed_dim, "cosine")
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1] to (B, D, kept)."""
        tokens: Tensor = self.quant_conv(self.s2to1encoder(self.encoder(x)).unsqueeze(2)).squeeze(2)
        return tokens[..., : self.kept]

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, D, n) to (B, 3, S, S), nominally in [-1, 1]; ReTok reads any first tokens, GigaTok all of them."""
        tokens = self.post_quant_conv(latents.unsqueeze(2)).squeeze(2)
        out: Tensor = self.decoder(self.s1to2decoder(tokens))
        return out


def network(card: Card) -> GigaTok:
    """Build the module a card describes."""
    arch: dict[str, Any] = dict(card.architecture)
    if "num_tokens" in card.options:
        arch["kept"] = int(card.options["num_tokens"])
    return GigaTok(codebook_size=card.spec.codebook_size[0], **arch)


def published_key(own: str, card: Card) -> str:
    """Spell a key of `GigaTok` as the published files do."""
    del card
    return official_key(own, "llamagen", 5, mid_attention=False)


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load a training checkpoint without its usage statistics and its distillation head."""
    drop = ("quantize.codebook_used", "s1to2decoder.distill_mlp.*")
    net = fill(weights, lambda: network(card), lambda own: published_key(own, card), drop=drop)
    return LatentTokenizer(card.spec, net, net.quantize)


def _size(value: str | list[int]) -> Size:
    return _SIZES[value] if isinstance(value, str) else Size(*value)
