"""TokenFlow: one index a place for two tables, of what CLIP sees and of pixels, over several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Stream, Weights

from .nn.checkpoint import assemble
from .nn.clip import ClipVision
from .nn.keynames import published_as
from .nn.latent import LatentTokenizer
from .nn.llamagen import fill, training_state
from .nn.neighbours import TableNeighbours
from .nn.quantize import channels_first, channels_last, lookup, nearest, no_single_search
from .nn.siglip import SiglipTrunk, siglip_layouts
from .nn.taming import Decoder, Encoder, Trunk, official_key


class SharedIndexQuantizer(nn.Module):
    """The row that is nearest in both tables together, each l2-normalised; what is left goes to the next finer scale.

    Args:
        size: Rows.
        semantic: Channels of the semantic table.
        pixel: Channels of the pixel table.
        sides: Of the scales, coarse to fine; the last is that of the latents.
    """

    def __init__(self, size: int, semantic: int, pixel: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.embedding_vqkd = nn.Embedding(size, semantic)
        self.embedding_vqgan = nn.Embedding(size, pixel)
        self.sides, self.split = tuple(sides), (semantic, pixel)

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, semantic + pixel, s, s) to a stream (B, s_k, s_k) a scale."""
        table, rest, streams = self._table(), z, []
        for side in self.sides:
            pooled = channels_last(F.interpolate(rest, size=(side, side), mode="area"))
            parts = [F.normalize(part, dim=-1) for part in torch.split(pooled, list(self.split), dim=-1)]
            indices = nearest(torch.cat(parts, dim=-1), table)
            streams.append(Stream("0", len(table), indices))
            rest = rest - self._enlarged(indices, table)
        return tuple(streams)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map the streams of all scales to (B, semantic + pixel, s, s)."""
        table = self._table()
        parts = [self._enlarged(stream.indices, table) for stream in streams]
        return sum(parts[1:], start=parts[0])

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry, in both tables together."""
        del codebook
        return TableNeighbours(self._table())

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: the tables see a residual a scale."""
        del z
        raise no_single_search(codebook)

    def _table(self) -> Tensor:
        return torch.cat([F.normalize(t.weight, dim=-1) for t in (self.embedding_vqkd, self.embedding_vqgan)], dim=-1)

    def _enlarged(self, indices: Tensor, table: Tensor) -> Tensor:
        rows = channels_first(lookup(indices, table))
        return F.interpolate(rows, size=(self.sides[-1], self.sides[-1]), mode="bicubic")


class SiglipVision(nn.Module):
    """SigLIP of 14-pixel patches at 384x384, as far as the block before its last: (B, 3, 384, 384) to (B, width, 27, 27)."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.trunk = SiglipTrunk(width, layers, heads, hidden, 27, (layers,))
        self.trunk.patch_embed = nn.Conv2d(3, width, 14, stride=14)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image in [-1, 1]; six pixels at its right and bottom are not seen."""
        return torch.unflatten(self.trunk(x.clamp(-1, 1))[0].transpose(1, 2), 2, (27, 27))


class TokenFlow(nn.Module):
    """A CLIP tower and LlamaGen's encoder into one code; LlamaGen's decoder out of the pixel part of it.

    Reference: Qu et al., TokenFlow, 2024 (arXiv:2412.03069), teachers `clipb_224` and `siglip_384`, whose pixel
    half works on the image enlarged to 16 pixels a place and is brought back. The semantic decoder is left out.

    Args:
        codebook_size: Rows of both tables.
        semantic: Channels of the semantic one.
        pixel: Of the pixel one.
        sides: Scales.
        encoder: Arguments of `nn.taming.Trunk`, for the pixel encoder.
        decoder: The same for the decoder.
        clip: Of `nn.clip.ClipVision`,
        siglip: or of `SiglipVision`.
    """

    def __init__(
        self,
        codebook_size: int,
        semantic: int,
        pixel: int,
        sides: Sequence[int],
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        clip: Mapping[str, int] | None = None,
        siglip: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        inner, outer = _trunk(encoder), _trunk(decoder)
        tower: Mapping[str, int] = siglip or clip or {}
        width = tower["width"]
        self.encoder, self.decoder = Encoder(inner), Decoder(outer)
        self.quant_conv = nn.Conv2d(inner.z_channels, pixel, 1)
        self.post_quant_conv = nn.Conv2d(pixel, outer.z_channels, 1)
        self.encoder_vqkd: nn.Module = SiglipVision(**tower) if siglip else ClipVision(**tower)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, semantic))
        self.quantize = SharedIndexQuantizer(codebook_size, semantic, pixel, sides)
        self.semantic = semantic
        self.sizes = (384, sides[-1] * 2 ** (len(inner.ch_mult) - 1)) if siglip else None

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1], which CLIP too receives as it is, to (B, semantic + pixel, s, s)."""
        seen = channels_first(self.encode_task_layer(channels_last(self.encoder_vqkd(x))))
        if self.sizes:
            x = F.interpolate(x, size=(self.sizes[1], self.sizes[1]), mode="bicubic")
        return torch.cat([seen, self.quant_conv(self.encoder(x))], dim=1)

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, semantic + pixel, s, s) to (B, 3, S, S), nominally in [-1, 1]."""
        out: Tensor = self.decoder(self.post_quant_conv(latents[:, self.semantic :]))
        return F.interpolate(out, size=(self.sizes[0], self.sizes[0]), mode="bicubic") if self.sizes else out


def _trunk(table: Mapping[str, Any]) -> Trunk:
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Trunk(**options, attention=(len(options["ch_mult"]) - 1,))


def network(card: Card) -> TokenFlow:
    """Build the module a card describes."""
    arch: dict[str, Any] = dict(card.architecture)
    return TokenFlow(codebook_size=card.spec.codebook_size[0], **arch)


def published_key(own: str, card: Card) -> str:
    """Spell a key of `TokenFlow` as the published files do."""
    return official_key(own, "llamagen", len(card.architecture["encoder"]["ch_mult"]))


_DROP = ("quantize.codebook_used", "decoder_vqkd.*", "decode_task_layer.*", "encoder_vqkd.proj", "scaling_layer.*")


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load a training checkpoint without its usage statistics and its semantic decoder."""
    if "siglip" not in card.architecture:
        net = fill(weights, lambda: network(card), lambda own: published_key(own, card), drop=_DROP)
        return LatentTokenizer(card.spec, net, net.quantize)
    path, tower = weights["model"], r"encoder_vqkd.vision_model."
    last = card.architecture["siglip"]["layers"]
    unread = [f"encoder_vqkd.trunk.{part}" for part in (f"blocks.{last}.*", "norm.*", "head.*", "*position_ids")]
    net = assemble(
        lambda: network(card),
        training_state(path),
        layouts=[
            *siglip_layouts(tower.replace(".", r"\."), "encoder_vqkd.trunk."),
            published_as([(r"^.*$", lambda found: published_key(found[0], card))]),
        ],
        drop=[*_DROP, *unread],
        source=str(path),
    )
    return LatentTokenizer(card.spec, net, net.quantize)
