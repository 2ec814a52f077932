"""Residual tables without projections of their own: what each table leaves over, the next one codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantize import lookup, nearest


class ResidualTables(nn.Module):
    """`depth` tables of `entries` rows, searched by Euclidean distance one after the other.

    State dict: `tables.k.weight` (entries, dim).
    """

    def __init__(self, entries: int, dim: int, depth: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(entries, dim) for _ in range(depth))

    def table(self, depth: int) -> Tensor:
        """Return the rows of one table."""
        weight: Tensor = self.tables[depth].weight  # type: ignore[assignment]
        return weight

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, L, dim) to indices (B, depth, L)."""
        found: list[Tensor] = []
        for depth in range(len(self.tables)):
            found.append(nearest(x, self.table(depth)))
            x = x - lookup(found[-1], self.table(depth))
        return torch.stack(found, dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map the indices (B, K, L) of the first K tables to (B, L, dim)."""
        rows = [lookup(row, self.table(depth)) for depth, row in enumerate(indices.unbind(1))]
        return torch.stack(rows).sum(0)
