"""Implicit binary codebooks: signs of channels to int64 indices and back, exact for up to 62 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def _weights(count: int, dim: int, like: Tensor, low_first: bool) -> Tensor:
    powers = torch.arange(count, device=like.device)
    powers = powers if low_first else powers.flip(0)
    shape = [1] * like.ndim
    shape[dim] = count
    return powers.view(shape)


def index_of(signs: Tensor, *, dim: int, low_first: bool) -> Tensor:
    """Return int64 indices of bool `signs`, whose axis `dim` holds the bits, lowest or highest first."""
    return (signs.long() << _weights(signs.shape[dim], dim, signs, low_first)).sum(dim)


def bits_of(indices: Tensor, count: int, *, dim: int, low_first: bool) -> Tensor:
    """Return the `count` bits of int64 `indices` as int64 zeros and ones along a new axis `dim`."""
    spread = indices.unsqueeze(dim)
    return (spread >> _weights(count, dim, spread, low_first)) & 1
