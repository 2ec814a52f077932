"""Quantizers of token sequences (B, C, N): tables, soft mixtures, product branches and their multi-scale residuals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.types import Neighbours

from .bits import bits_of, index_of
from .neighbours import BitNeighbours, TableNeighbours
from .quantize import Metric, channels_first, lookup, nearest, nearest_tick


class TokenQuantizer(Protocol):
    """What turns token sequences into a code and back."""

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, C, N) to indices (B, K, M) or latents (B, C', N)."""
        ...

    def decode(self, code: Tensor) -> Tensor:
        """Map a code, or a prefix of it, to tokens (B, C'', N')."""
        ...


class Searchable(Protocol):
    """A token quantizer with codebooks, called "0", "1" and so on."""

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry."""
        ...

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Map (B, C, N) to what one codebook is searched with, (B, M, D)."""
        ...


class GridQuantizer(Protocol):
    """What turns a square grid of latents into a sequence of indices and back."""

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, C, g, g) to indices (B, M)."""
        ...

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, M) to (B, C, g, g)."""
        ...

    def neighbours(self) -> Neighbours:
        """Return what lies near an entry."""
        ...

    def seen(self, z: Tensor) -> Tensor:
        """Map (B, C, g, g) to what the codebook is searched with, (B, M, C)."""
        ...


# ---------------------------------------------------------------------------------------------------------- sequences


class Table(nn.Module):
    """One table for all tokens; with the cosine metric rows are read back l2-normalised. State dict: `embedding.weight`."""

    def __init__(self, size: int, dim: int, metric: Metric) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self._metric = metric

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, dim, N) to indices (B, 1, N)."""
        return nearest(z.transpose(1, 2), self.embedding.weight, self._metric).unsqueeze(1)

    def decode(self, code: Tensor) -> Tensor:
        """Map indices (B, 1, N) to (B, dim, N)."""
        return lookup(code[:, 0], self.embedding.weight, normalise=self._metric == "cosine").transpose(1, 2)

    def neighbours(self, codebook: str) -> Neighbours:  # noqa: ARG002
        """Return what lies near a row."""
        return TableNeighbours(self.embedding.weight, cosine=self._metric == "cosine")

    def seen(self, z: Tensor, codebook: str) -> Tensor:  # noqa: ARG002
        """Map (B, dim, N) to (B, N, dim)."""
        return z.transpose(1, 2)


class Posterior(nn.Module):
    """The mean of a diagonal Gaussian whose log-variances are the second half of the channels. No parameters."""

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, 2C, N) to (B, C, N)."""
        return z.chunk(2, dim=1)[0]

    def decode(self, code: Tensor) -> Tensor:
        """Return the latents."""
        return code


class Unquantized(nn.Module):
    """Latents as they are. No parameters."""

    def encode(self, z: Tensor) -> Tensor:
        """Return the latents."""
        return z

    def decode(self, code: Tensor) -> Tensor:
        """Return the latents."""
        return code


class SoftMixture(nn.Module):
    """Every token becomes a softmax-weighted mean of l2-normalised rows; runs of tokens have a table each.

    Chen et al., "SoftVQ-VAE", CVPR 2025. State dict: `embedding` (tables, size, dim). Token n of N uses table
    n * tables // N; the weights are the softmax of cosine / tau; the mean is not normalised again.
    """

    def __init__(self, tables: int, size: int, dim: int, tau: float) -> None:
        super().__init__()
        self.embedding, self._tau = nn.Parameter(torch.empty(tables, size, dim)), tau

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, dim, N) to latents (B, dim, N)."""
        rows = F.normalize(self.embedding, dim=-1)
        tokens = F.normalize(z.transpose(1, 2), dim=-1)
        runs = tokens.reshape(len(tokens), len(rows), -1, tokens.shape[2])
        mixed = (runs @ rows.transpose(1, 2) / self._tau).softmax(-1) @ rows
        return mixed.flatten(1, 2).transpose(1, 2)

    def decode(self, code: Tensor) -> Tensor:
        """Return the latents."""
        return code


class Product(nn.Module):
    """Runs of tokens, one a branch, each a grid with a quantizer of its own; the decoder sees them stacked on channels."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, C, branches * g * g) to indices (B, branches, M)."""
        pairs = zip(self._quantizers(), self._grids(z), strict=True)
        return torch.stack([branch.encode(part) for branch, part in pairs], dim=1)

    def decode(self, code: Tensor) -> Tensor:
        """Map indices (B, branches, M) to (B, branches * C, g * g)."""
        pairs = zip(self._quantizers(), code.unbind(1), strict=True)
        return torch.cat([branch.decode(indices) for branch, indices in pairs], dim=1).flatten(2)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of a branch."""
        return self._quantizers()[int(codebook)].neighbours()

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Map (B, C, branches * g * g) to what one branch is searched with, (B, M, C)."""
        return self._quantizers()[int(codebook)].seen(self._grids(z)[int(codebook)])

    def _grids(self, z: Tensor) -> tuple[Tensor, ...]:
        side = math.isqrt(z.shape[2] // len(self.branches))
        return z.reshape(*z.shape[:2], len(self.branches), side, side).unbind(2)

    def _quantizers(self) -> list[GridQuantizer]:
        return list(self.branches)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- grids


class GridTable(nn.Module):
    """One table under the cosine metric, rows read back l2-normalised. State dict: `embedding.weight`."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, dim, g, g) to indices (B, g * g)."""
        return nearest(z.flatten(2).transpose(1, 2), self.embedding.weight, "cosine")

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, g * g) to (B, dim, g, g)."""
        rows = lookup(indices, self.embedding.weight, normalise=True).transpose(1, 2)
        side = math.isqrt(rows.shape[2])
        return rows.reshape(*rows.shape[:2], side, side)

    def neighbours(self) -> Neighbours:
        """Return what lies near a row."""
        return TableNeighbours(self.embedding.weight, cosine=True)

    def seen(self, z: Tensor) -> Tensor:
        """Map (B, dim, g, g) to (B, g * g, dim)."""
        return z.flatten(2).transpose(1, 2)


class MultiScale(nn.Module):
    """A residual at every scale, coarse to fine, the indices of all scales in a row. Li et al., ImageFolder, ICLR 2025.

    A scale sees the residual pooled to its grid. With `size` its rows are those of a table under the cosine metric, read
    back as they are; without, a token is the signs of the residual, channel 0 the lowest bit, read back as `scaler` of
    that scale, and the latents are l2-normalised first (binary spherical quantization). Rows are enlarged bicubically,
    blended half and half with a 3x3 convolution of themselves and subtracted; the convolutions are shared by scales.
    State dict: `quant_resi.qresi_ls.k.*` and `embedding.weight` (size, dim) or `scaler` (scales,).

    Args:
        size: Rows of the table; None quantizes signs.
        dim: Channels.
        sides: Of the grids, coarse to fine; the last one is the latents' own.
        convolutions: How many are shared.
    """

    def __init__(self, size: int | None, dim: int, sides: Sequence[int], convolutions: int = 4) -> None:
        super().__init__()
        self._sides, self._dim = tuple(sides), dim
        self.embedding = None if size is None else nn.Embedding(size, dim)
        self.scaler = None if size is not None else nn.Parameter(torch.empty(len(sides)))
        shared = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(convolutions))
        self.quant_resi = nn.ModuleDict({"qresi_ls": shared})

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, dim, g, g) to indices (B, sum of sides squared)."""
        return torch.cat([indices.flatten(1) for _, indices in self._scales(z)], dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, sum of sides squared) to (B, dim, g, g)."""
        parts = torch.split(indices, [side**2 for side in self._sides], dim=1)
        grids = [part.reshape(-1, side, side) for part, side in zip(parts, self._sides, strict=True)]
        total = self._enlarged(grids[0], 0)
        for k, grid in enumerate(grids[1:], start=1):
            total = total + self._enlarged(grid, k)
        return total

    def neighbours(self) -> Neighbours:
        """Return what lies near a row, or near a word of signs."""
        if self.embedding is None:
            return BitNeighbours(self._dim)
        return TableNeighbours(self.embedding.weight, cosine=True)

    def seen(self, z: Tensor) -> Tensor:
        """Map (B, dim, g, g) to the pooled residuals of all scales, (B, sum of sides squared, dim)."""
        return torch.cat([pooled.flatten(2).transpose(1, 2) for pooled, _ in self._scales(z)], dim=1)

    def _scales(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        rest = z.float() if self.scaler is None else F.normalize(z.float(), dim=1)
        found = []
        for k, side in enumerate(self._sides):
            pooled = F.interpolate(rest, size=(side, side), mode="area")
            if self.embedding is not None:
                indices = nearest(pooled.movedim(1, -1), self.embedding.weight, "cosine")
            else:
                indices = index_of(pooled > 0, dim=1, low_first=True)
            found.append((pooled, indices))
            rest = rest - self._enlarged(indices, k)
        return found

    def _enlarged(self, indices: Tensor, k: int) -> Tensor:
        last = self._sides[-1]
        if self.embedding is not None:
            rows = channels_first(lookup(indices, self.embedding.weight))
        else:
            signs = bits_of(indices, self._dim, dim=1, low_first=True) * 2 - 1
            rows = signs * self.scaler[k]  # type: ignore[index]
        if k < len(self._sides) - 1:
            rows = F.interpolate(rows, size=(last, last), mode="bicubic")
        shared: nn.ModuleList = self.quant_resi["qresi_ls"]  # type: ignore[assignment]
        convolved: Tensor = shared[nearest_tick(k, len(self._sides), len(shared))](rows)
        return rows * 0.5 + convolved * 0.5
