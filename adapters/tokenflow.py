"""TokenFlow: one index a place for two tables, of what CLIP sees and of pixels, over several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Stream, Weights

from .nn.clip import ClipVision
from .nn.latent import LatentTokenizer
from .nn.llamagen import fill
from .nn.neighbours import TableNeighbours
from .nn.quantize import channels_first, channels_last, lookup, nearest, no_single_search
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
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

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


class TokenFlow(nn.Module):
    """A CLIP tower and LlamaGen's encoder into one code; LlamaGen's decoder out of the pixel part of it.

    Reference: Qu et al., TokenFlow, 2024 (arXiv:2412.03069), teacher `clipb_224`. The semantic decoder is left out.

    Args:
        codebook_size: Rows of both tables.
        semantic: Channels of the semantic one.
        pixel: Of the pixel one.
        sides: Scales.
        clip: Arguments of `nn.clip.ClipVision`.
        encoder: Of `nn.taming.Trunk`, for the pixel encoder.
        decoder: The same for the decoder.
    """

    def __init__(
        self,
        codebook_size: int,
        semantic: int,
        pixel: int,
        sides: Sequence[int],
        clip: Mapping[str, int],
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
    ) -> None:
        super().__init__()
        inner, outer = _trunk(encoder), _trunk(decoder)
        width = clip["width"]
        self.encoder, self.decoder = Encoder(inner), Decoder(outer)
        self.quant_conv = nn.Conv2d(inner.z_channels, pixel, 1)
        self.post_quant_conv = nn.Conv2d(pixel, outer.z_channels, 1)
        self.encoder_vqkd = ClipVision(**clip)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, semantic))
        self.quantize = SharedIndexQuantizer(codebook_size, semantic, pixel, sides)
        self.semantic = semantic

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1], which CLIP too receives as it is, to (B, semantic + pixel, s, s)."""
        seen = channels_first(self.encode_task_layer(channels_last(self.encoder_vqkd(x))))
        return torch.cat([seen, self.quant_conv(self.encoder(x))], dim=1)

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, semantic + pixel, s, s) to (B, 3, S, S), nominally in [-1, 1]."""
        out: Tensor = self.decoder(self.post_quant_conv(latents[:, self.semantic :]))
        return out


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


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load a training checkpoint without its usage statistics and its semantic decoder."""
    drop = ("quantize.codebook_used", "decoder_vqkd.*", "decode_task_layer.*", "encoder_vqkd.proj")
    net = fill(weights, lambda: network(card), lambda own: published_key(own, card), drop=drop)
    return LatentTokenizer(card.spec, net, net.quantize)
