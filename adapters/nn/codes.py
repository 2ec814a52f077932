"""Between an index tensor of parallel codebooks and the streams of a code."""

from __future__ import annotations

import torch
from torch import Tensor

from tokbench.types import Code, Stream


def parallel_streams(indices: Tensor, size: int) -> tuple[Stream, ...]:
    """Turn (B, K, T) indices of K codebooks of `size` entries into K streams (B, T), named 0 to K-1."""
    return tuple(Stream(str(k), size, row.long().contiguous()) for k, row in enumerate(indices.unbind(dim=1)))


def stacked_indices(code: Code, count: int, owner: str) -> Tensor:
    """Return the indices of a code of parallel codebooks: (B, K, T).

    Raises:
        ValueError: The code has not `count` streams.
    """
    if len(code.streams) != count:
        raise ValueError(f"{owner} decodes {count} streams; this code has {len(code.streams)}")
    return torch.stack([stream.indices for stream in code.streams], dim=1)
