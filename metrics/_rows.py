"""What the image and video metrics share: checked pairs, row blocks, and sums that never depend on the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Sample

_BLOCK = 2**24


def checked_pair(metric: str, sample: Sample) -> tuple[Tensor, Tensor]:
    """Return reference and reconstruction, (B, 3, H, W) or (B, 3, T, H, W), on a device that has float64.

    Raises:
        NotApplicable: Neither images nor video.
        UsageError: Shapes differ, or are not of that form.
    """
    x, y = sample.reference, sample.reconstruction
    axes = {"image": 4, "video": 5}.get(sample.spec.modality)
    if axes is None:
        raise NotApplicable(f"{metric} compares images and video; {sample.spec.name} is a tokenizer of sound")
    if x.shape != y.shape or x.ndim != axes or x.numel() == 0:
        raise UsageError(
            f"{metric} needs reference and reconstruction of one shape with {axes} axes, none empty; "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return (x.cpu(), y.cpu()) if x.device.type == "mps" else (x, y)


def as_frames(x: Tensor) -> Tensor:
    """Return (B, 3, H, W) as it is and (B, 3, T, H, W) as (B * T, 3, H, W)."""
    return x if x.ndim == 4 else x.movedim(2, 1).flatten(0, 1)


def by_rows(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Apply `function` (n rows in, n rows out) to the batch in blocks and return all rows.

    On CPU a block is one row, so that a row's bits cannot depend on the rest of its batch; elsewhere as many rows as keep
    a block under 16 million values.
    """
    step = 1 if x.device.type == "cpu" else max(1, _BLOCK // max(1, x[0].numel()))
    return torch.cat([function(x[i : i + step], y[i : i + step]) for i in range(0, x.shape[0], step)])


def sum_behind(x: Tensor, axes: int) -> Tensor:
    """Sum all axes behind the first `axes` in float64, one at a time from the last.

    One axis at a time, because the order of a sum over several is the library's choice and depends on the thread count.
    """
    x = x.to(torch.float64).contiguous()
    while x.ndim > axes:
        x = x.sum(-1)
    return x
