"""Rows of sound as networks for speech want them: one channel, at one rate."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokbench.resampler import resample
from tokbench.types import FloatArray, Sample

from ._audio import checked_rate

RATE = 16_000
"""Hz that nearly every published speech network takes."""

Side = Literal["reference", "reconstruction"]

MONO = "mean of channels"
"""What metrics' protocols say of channels."""


def mono_rows(metric: str, sample: Sample, side: Side, rate: int = RATE) -> list[Tensor]:
    """Return each row of one side as (T',) float32 at `rate` on its device; resampled once a batch, kept in `sample.memo`.

    Channels are averaged first. The resampler is the project's own, `sinc-hann-6-0.99`; T' = ceil(T * rate / own rate).

    Raises:
        NotApplicable: The tokenizer is not an audio tokenizer.
        UsageError: Shapes differ or the sample rate is missing.
    """
    own = checked_rate(metric, sample)
    place = ("mono", side, rate)
    memo: dict[Any, Any] = sample.memo
    if place not in memo:
        x = sample.reference if side == "reference" else sample.reconstruction
        memo[place] = [_at_rate(mono(row), own, rate) for row in x]
    found: list[Tensor] = memo[place]
    return found


def mono(row: Tensor) -> Tensor:
    """Average the channels of (C, T): (T,) float32."""
    if row.shape[0] == 1:
        return row[0].detach().to(torch.float32, copy=True).contiguous()
    exact = (row.cpu() if row.device.type == "mps" else row).double()  # which has no float64
    return exact.mean(0).detach().to(row.device, torch.float32).contiguous()


def mono_numpy(row: FloatArray, own: int, rate: int = RATE) -> FloatArray:
    """Return (C, T) float32 as (T',) float32 at `rate`: the bits of `mono_rows` on the CPU."""
    mixed = mono(torch.from_numpy(np.ascontiguousarray(row)))
    out: FloatArray = _at_rate(mixed, own, rate).numpy()
    return out


def _at_rate(x: Tensor, own: int, rate: int) -> Tensor:
    return resample(x, own, rate)
