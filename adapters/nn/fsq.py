"""Finite scalar quantization: a codebook that is a grid, so that nothing has to be learned or searched.

Mentzer, Minnen, Agustsson, Tschannen, "Finite Scalar Quantization: VQ-VAE Made Simple", 2023 (arXiv:2309.15505),
appendix A.1: the same bound, the same rounding and the same order of indices (the first level varies fastest).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Quantize the last axis of a tensor to a grid of `levels`; it holds no parameters.

    A latent is bounded by tanh, shifted by half a step where the level count is even, and rounded. Feed it latents of
    about zero mean and unit variance (a norm in front): a latent far outside is stuck at the edge of the grid and one
    close to zero uses a single level, and neither finds its way back in training.

    Args:
        levels: Level count per dimension, each at least 2; (8, 5, 5, 5) makes a codebook of 1000 entries.
        eps: How far the outermost levels lie inside the bound.

    Raises:
        ValueError: `levels` is empty or holds a count below 2.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    width: Tensor
    basis: Tensor
    levels: Tensor

    def __init__(self, levels: Sequence[int], eps: float = 1e-3) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs at least one level count and each at least 2, got {tuple(levels)}")
        self.dim, self.codebook_size = len(levels), prod(levels)
        count = torch.tensor(levels, dtype=torch.int64)
        half = (count - 1) * (1 + eps) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        tables = {
            "levels": count,
            "reach": half,
            "offset": offset,
            "shift": torch.atanh(offset / half),
            "width": count // 2,
            "basis": torch.tensor([prod(levels[:i]) for i in range(len(levels))], dtype=torch.int64),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash (..., dim) latents of any size to just inside the outermost levels, in units of one step."""
        return torch.tanh(z + self.shift) * self.reach - self.offset

    def forward(self, z: Tensor) -> Tensor:
        """Return the (..., dim) codes in [-1, 1] nearest to the latents; gradients pass the rounding unchanged."""
        bounded = self.bound(z.float())
        return (bounded + (bounded.round() - bounded).detach()) / self.width

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Turn (..., dim) codes into (...) int64 indices in [0, codebook_size)."""
        steps = (codes * self.width + self.width).round().to(torch.int64)
        return (steps * self.basis).sum(-1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Turn (...) indices into (..., dim) float32 codes in [-1, 1]; the inverse of `codes_to_indices`."""
        steps = (indices.unsqueeze(-1) // self.basis) % self.levels
        return ((steps - self.width) / self.width).float()
