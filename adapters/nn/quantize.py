"""Vector quantizers that several families share: how latents become indices of a table and how the table is read back.

Every quantizer here is an `nn.Module` with four methods, and holds no other state than its tables:

    encode(z: (B, C, h, w)) -> tuple[Stream, ...]
    decode(streams) -> (B, C, h, w)
    neighbours(codebook) -> Neighbours
    seen(z, codebook) -> (B, h, w, D), what one table is searched with

`nearest` and `lookup` are the two functions underneath, for quantizers with a shape of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Neighbours, Stream

from .neighbours import BitNeighbours, GridNeighbours, TableNeighbours

Metric = Literal["euclidean", "cosine", "dot"]
"""How near a row is: least squared distance, the same after l2-normalising both sides, or largest inner product."""

Scales = tuple[tuple[int, int], ...]
"""The (h, w) grids of a multi-scale code, coarse to fine; the last one is the latent grid itself."""

_BLOCK = 1 << 24


class Quantizer(Protocol):
    """What turns latents (B, C, h, w) into streams and back."""

    def encode(self, z: Tensor) -> tuple[Stream, ...]: ...

    def decode(self, streams: Sequence[Stream]) -> Tensor: ...

    def neighbours(self, codebook: str) -> Neighbours: ...

    def seen(self, z: Tensor, codebook: str) -> Tensor: ...


# ------------------------------------------------------------------------------------------------------- the core


def nearest(z: Tensor, table: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return the row of `table` (K, D) that is nearest to each latent (..., D), as int64 (...).

    Distances are float32 whatever the dtype of the arguments: |z|^2 + |e|^2 - 2 z.e, in this order, as taming-transformers
    computes them. Among rows at exactly one distance the lowest index wins. Latents are taken in blocks, so that no more
    than 2^24 distances exist at a time.
    """
    flat, rows = z.reshape(-1, z.shape[-1]).float(), table.float()
    if metric == "cosine":
        flat, rows = F.normalize(flat, dim=-1), F.normalize(rows, dim=-1)
    norms = rows.square().sum(1)
    found = []
    for part in torch.split(flat, max(1, _BLOCK // len(rows))):
        product = part @ rows.T
        if metric == "dot":
            found.append(product.argmax(1))
        else:
            distance = part.square().sum(1, keepdim=True) + norms
            found.append(distance.sub_(product, alpha=2).argmin(1))
    return torch.cat(found).view(z.shape[:-1])


def lookup(indices: Tensor, table: Tensor, *, normalise: bool = False) -> Tensor:
    """Return the rows of `table` (K, D) at `indices` (...), as (..., D); l2-normalised rows if `normalise`."""
    rows = F.embedding(indices, table)
    return F.normalize(rows, dim=-1) if normalise else rows


def channels_last(z: Tensor) -> Tensor:
    """Turn (B, C, *grid) into (B, *grid, C)."""
    return z.movedim(1, -1)


def channels_first(z: Tensor) -> Tensor:
    """Turn (B, *grid, C) into a contiguous (B, C, *grid)."""
    return z.movedim(-1, 1).contiguous()


def no_single_search(codebook: str) -> NotApplicable:
    """Return the error of a quantizer whose table is searched several times, by other distances, or not at all."""
    return NotApplicable(f"codebook {codebook!r} is not searched once for the nearest row")


# ------------------------------------------------------------------------------------------------- one table


class VectorQuantizer(nn.Module):
    """A table of `size` rows, one stream. Van den Oord et al., "Neural Discrete Representation Learning", 2017.

    State dict: `embedding.weight` (size, dim). With the cosine metric the decoder receives the l2-normalised row
    (Yu et al., ViT-VQGAN, 2022, as LlamaGen uses it); with `dot` the largest inner product wins (IBQ).
    """

    def __init__(self, size: int, dim: int, metric: Metric = "euclidean") -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.metric = metric

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, dim, h, w) to one stream of (B, h, w)."""
        table = self.embedding.weight
        return (Stream("0", len(table), nearest(channels_last(z), table, self.metric)),)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map one stream (B, h, w) to (B, dim, h, w)."""
        table = self.embedding.weight
        return channels_first(lookup(streams[0].indices, table, normalise=self.metric == "cosine"))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return TableNeighbours(self.embedding.weight, cosine=self.metric == "cosine")

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Return (B, h, w, dim). Raises NotApplicable for the `dot` metric, whose row is not the nearest."""
        if self.metric == "dot":
            raise no_single_search(codebook)
        return channels_last(z)


class ParallelQuantizer(nn.Module):
    """Several tables side by side, each for a share of the channels, one stream each, in the order of the names.

    State dict: `name.embedding.weight`.
    """

    def __init__(self, tables: Mapping[str, VectorQuantizer]) -> None:
        super().__init__()
        self._tables = dict(tables)
        for name, table in tables.items():
            self.add_module(name, table)

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, tables x dim, h, w) to a stream of (B, h, w) a table."""
        parts = zip(self._tables.items(), z.chunk(len(self._tables), dim=1), strict=True)
        return tuple(replace(table.encode(part)[0], codebook=name) for (name, table), part in parts)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map a stream (B, h, w) a table to (B, tables x dim, h, w)."""
        pairs = zip(self._tables.values(), streams, strict=True)
        return torch.cat([table.decode([stream]) for table, stream in pairs], dim=1)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one table."""
        return self._tables[self._known(codebook)].neighbours(codebook)

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Return the share (B, h, w, dim) of one table."""
        place = list(self._tables).index(self._known(codebook))
        return channels_last(z.chunk(len(self._tables), dim=1)[place])

    def _known(self, codebook: str) -> str:
        if codebook not in self._tables:
            raise UsageError(f"the codebooks are {', '.join(self._tables)}, not {codebook!r}")
        return codebook


class GumbelQuantizer(nn.Module):
    """Logits over `size` rows from a 1x1 convolution; the most likely row is taken. Jang et al., 2016; DALL-E.

    State dict: `proj.weight` (size, channels, 1, 1), `proj.bias`, `embed.weight` (size, dim). The official code draws
    Gumbel noise at inference too; here the mode is taken, so that a code is a function of the image.
    """

    def __init__(self, size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, size, 1)
        self.embed = nn.Embedding(size, dim)

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, channels, h, w) to one stream of (B, h, w)."""
        return (Stream("0", self.embed.num_embeddings, self.proj(z).argmax(1)),)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map one stream (B, h, w) to (B, dim, h, w)."""
        return channels_first(lookup(streams[0].indices, self.embed.weight))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return TableNeighbours(self.embed.weight)

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: rows are chosen by logits."""
        del z
        raise no_single_search(codebook)


class ResidualQuantizer(nn.Module):
    """`depth` streams of one grid, each quantizing what the ones before left over. Lee et al., RQ-VAE, 2022.

    State dict: `codebooks.k.weight` (size + 1, dim); the last row is padding that is never chosen. `shared`: the
    tables of all depths are one, so the streams carry one codebook id.
    """

    def __init__(self, size: int, dim: int, depth: int, *, shared: bool) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(nn.Embedding(size + 1, dim) for _ in range(depth))
        self.size, self.shared = size, shared

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, dim, h, w) to `depth` streams of (B, h, w), coarse to fine."""
        rest, streams = channels_last(z), []
        for k in range(len(self.codebooks)):
            table = self._table(k)[:-1]
            indices = nearest(rest, table)
            rest = rest - lookup(indices, table)
            streams.append(Stream("0" if self.shared else str(k), self.size, indices))
        return tuple(streams)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map the first streams (B, h, w) each, all or fewer, to (B, dim, h, w)."""
        rows = [lookup(stream.indices, self._table(k)) for k, stream in enumerate(streams)]
        return channels_first(torch.stack(rows, dim=-2).sum(-2))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table of one depth."""
        return TableNeighbours(self._table(int(codebook))[:-1])

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: a table sees a residual a depth."""
        del z
        raise no_single_search(codebook)

    def _table(self, depth: int) -> Tensor:
        table: Tensor = self.codebooks[depth].weight  # type: ignore[assignment]
        return table


# --------------------------------------------------------------------------------------------- several scales


class MultiScaleQuantizer(nn.Module):
    """One stream a scale, coarse to fine, each quantizing what the coarser ones left over. Tian et al., VAR, 2024.

    A scale sees the residual pooled to its grid (`area`); its rows are enlarged bicubically to the full grid, blended
    with a 3x3 convolution of themselves and subtracted. Four convolutions are shared by all scales, each taking the
    scales nearest to its place in the order. State dict: `embedding.weight` (size, dim), `quant_resi.qresi_ls.k.*`.

    Args:
        size: Rows of the one table all scales share.
        dim: Channels.
        scales: Grids by the size of the latent grid.
        blend: Weight of the convolved part (0.5 in VAR).
        convolutions: How many are shared.
    """

    def __init__(
        self, size: int, dim: int, scales: Mapping[tuple[int, int], Scales], blend: float = 0.5, convolutions: int = 4
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        shared = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(convolutions))
        self.quant_resi = nn.ModuleDict({"qresi_ls": shared})
        self.scales, self.blend = MappingProxyType(dict(scales)), blend

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, dim, h, w) to a stream (B, h_k, w_k) a scale.

        Raises:
            ValueError: The latent grid is none that has a list of scales.
        """
        table = self.embedding.weight
        scales = scales_of(self.scales, (z.shape[2], z.shape[3]))
        rest, streams = z, []
        for k, grid in enumerate(scales):
            pooled = rest if grid == scales[-1] else F.interpolate(rest, size=grid, mode="area")
            indices = nearest(channels_last(pooled), table)
            streams.append(Stream("0", len(table), indices))
            rest = rest - self._enlarged(indices, k, len(scales), scales[-1])
        return tuple(streams)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map the streams of all scales to (B, dim, h, w)."""
        _, h, w = streams[-1].indices.shape
        parts = [self._enlarged(stream.indices, k, len(streams), (h, w)) for k, stream in enumerate(streams)]
        return sum(parts[1:], start=parts[0])

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return TableNeighbours(self.embedding.weight)

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: the table sees a residual a scale."""
        del z
        raise no_single_search(codebook)

    def _enlarged(self, indices: Tensor, k: int, count: int, grid: tuple[int, int]) -> Tensor:
        rows = channels_first(lookup(indices, self.embedding.weight))
        if rows.shape[2:] != grid:
            rows = F.interpolate(rows, size=grid, mode="bicubic")
        shared: nn.ModuleList = self.quant_resi["qresi_ls"]  # type: ignore[assignment]
        out: Tensor = rows * (1 - self.blend) + shared[nearest_tick(k, count, len(shared))](rows) * self.blend
        return out


def nearest_tick(k: int, count: int, ticks: int) -> int:
    """Return which of `ticks` shared modules scale `k` of `count` uses: the nearest of equally spaced places in [0, 1].

    Two scales of ten lie exactly between two ticks; the float64 rounding of the official formula decides them, so the
    ticks are spelled as it spells them (`linspace`, margin 1/3/K for K = 4 and 1/2/K otherwise).
    """
    margin = 1 / 3 / ticks if ticks == 4 else 1 / 2 / ticks
    start, stop = margin, 1 - margin
    step = (stop - start) / (ticks - 1) if ticks > 1 else 0.0
    places = [*(start + i * step for i in range(ticks - 1)), stop]
    at = k / (count - 1) if count > 1 else 0.0
    return min(range(ticks), key=lambda i: (abs(places[i] - at), i))


class MultiScaleBSQ(nn.Module):
    """Binary spherical quantization of a residual at every scale: a token is `bits` signs. Han et al., Infinity, 2024.

    It holds no parameters. Latents are projected to the unit sphere, every sign is a bit (0 counts as negative) and the
    code is the sign over sqrt(bits). One table would have 2^bits rows, so a token is written as groups of at most 16 bits,
    each a stream of its own; the first channel is the highest bit.

    Args:
        bits: Channels, 16 to 64.
        scales: Grids by the size of the latent grid.
    """

    def __init__(self, bits: int, scales: Mapping[tuple[int, int], Scales]) -> None:
        super().__init__()
        self.groups = -(-bits // 16)
        if bits % self.groups:
            raise ValueError(f"{bits} bits do not fall into {self.groups} equal groups")
        self.bits, self.width = bits, bits // self.groups
        self.scales = MappingProxyType(dict(scales))

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, bits, h, w) to a stream (B, h_k, w_k) a scale and group, groups varying fastest."""
        scales = scales_of(self.scales, (z.shape[2], z.shape[3]))
        rest: Tensor = z.float()
        streams: list[Stream] = []
        for grid in scales:
            pooled = rest if grid == scales[-1] else F.interpolate(rest, size=grid, mode="area")
            positive = channels_last(pooled) > 0
            streams += self._streams(positive)
            rest = rest - self._enlarged(positive, scales[-1])
        return tuple(streams)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map the streams of all scales to (B, bits, h, w), float32."""
        _, h, w = streams[-1].indices.shape
        total: Tensor | None = None
        for k in range(0, len(streams), self.groups):
            words = torch.stack([stream.indices for stream in streams[k : k + self.groups]], dim=-1)
            positive = (words.unsqueeze(-1) >> self._shifts(words.device)) & 1
            part = self._enlarged(positive.flatten(-2), (h, w))
            total = part if total is None else total + part
        if total is None:
            raise ValueError("a code without streams")
        return total

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return BitNeighbours(self.width)

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: there is no table."""
        del z
        raise no_single_search(codebook)

    def _streams(self, positive: Tensor) -> list[Stream]:
        groups = torch.split(positive.long(), self.width, dim=-1)
        shifts = self._shifts(positive.device)
        return [Stream(f"bits-{g}", 1 << self.width, (bits << shifts).sum(-1)) for g, bits in enumerate(groups)]

    def _shifts(self, device: torch.device) -> Tensor:
        return torch.arange(self.width - 1, -1, -1, device=device)

    def _enlarged(self, positive: Tensor, grid: tuple[int, int]) -> Tensor:
        signs = channels_first(positive.float() * 2 - 1) / math.sqrt(self.bits)
        return signs if signs.shape[2:] == grid else F.interpolate(signs, size=grid, mode="bilinear")


def scales_of(table: Mapping[tuple[int, int], Scales], grid: tuple[int, int]) -> Scales:
    """Return the scales of a latent grid. Raises ValueError when the tokenizer has none for it."""
    if grid not in table:
        known = ", ".join(f"{h}x{w}" for h, w in table)
        raise ValueError(f"no scales are published for a latent grid of {grid[0]}x{grid[1]}; there are for {known}")
    return table[grid]


# ------------------------------------------------------------------------------------------------- no training


class GaussianLevels(nn.Module):
    """Rounds every channel to one of 2^bits levels of a normal distribution, after training. TokenBridge, 2025.

    A level is the mean of a standard normal between two of its quantiles, clamped to `spread` sigmas, stretched from
    [-spread, spread] to [-reach, reach]; the nearest level is taken, the lower one at a tie. One stream a channel, all
    of one table. It holds no parameters.

    Args:
        bits: log2 of the number of levels.
        scale: Factor on the latents before rounding, undone after.
        reach: Largest scaled latent.
        spread: Where the normal distribution is cut.
    """

    def __init__(self, bits: int, scale: float, reach: float = 5.0, spread: float = 3.0) -> None:
        super().__init__()
        self.scale, self.ratio, self.spread = scale, spread / reach, spread
        # Not a buffer: a module that moves to bfloat16 would take it along, and levels are compared in float32.
        self.levels = gaussian_levels(bits, spread)

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, C, h, w) to C streams of (B, h, w)."""
        x = (z.float() * self.scale * self.ratio).clamp(-self.spread, self.spread)
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        indices = torch.bucketize(x, middle.to(x.device))
        return tuple(Stream("levels", len(self.levels), channel.contiguous()) for channel in indices.unbind(1))

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map C streams (B, h, w) to (B, C, h, w)."""
        indices = torch.stack([stream.indices for stream in streams], dim=1)
        return self.levels.to(indices.device)[indices] / self.ratio / self.scale

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return GridNeighbours((len(self.levels),))

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: levels are no vectors."""
        del z
        raise no_single_search(codebook)


def gaussian_levels(bits: int, spread: float) -> Tensor:
    """Return the 2^bits means of a standard normal between its clamped quantiles, float32, rising."""
    quantiles = torch.linspace(0, 1, 2**bits + 1, dtype=torch.float64)
    edges = torch.special.ndtri(quantiles).clamp(-spread, spread)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(edges)
    means: Tensor = (density[:-1] - density[1:]) / (below[1:] - below[:-1])
    return means.float()
