"""What metrics that run the tokenizer again share: the codec of a batch, seeded draws, errors and changed tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.types import Code, Codec, Sample, Stream

from ._rows import by_rows, sum_behind

CAP = 100.0
"""Highest PSNR in dB, as in metric `psnr`: equal signals have none."""

NO_TOKENS = "the tokenizer emits no discrete tokens"


def codec_of(metric: str, sample: Sample) -> Codec:
    """Return the batch's codec.

    Raises:
        NotApplicable: The batch has none: its pictures went back to their own sizes after decoding.
    """
    if sample.codec is None:
        raise NotApplicable(f"{metric} runs the tokenizer again; preset tokbench-pad resizes what it returned")
    return sample.codec


def generator(metric: str, seed: int, key: str) -> torch.Generator:
    """Return a CPU generator seeded by the metric, the protocol's seed and the sample's key."""
    number = int.from_bytes(hashlib.sha256(f"{metric}:{seed}:{key}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared difference of each row, (B,) float64."""

    def squares(a: Tensor, b: Tensor) -> Tensor:
        return sum_behind((a.to(torch.float64) - b.to(torch.float64)).square_(), 1)

    return by_rows(squares, x, y) / x[0].numel()


def decibels(error: Tensor) -> Tensor:
    """Return the PSNR of mean squared errors of signals in [0, 1], at most `CAP`."""
    return (-10.0 * torch.log10(error)).clamp(max=CAP)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the PSNR of each row, (B,) float64 in dB."""
    return decibels(mse(x, y))


def mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape, added in their order."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def with_mean(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the column `name`, the mean of its parts, and each part as `name/part`."""
    return {name: mean(list(parts.values())), **{f"{name}/{part}": value for part, value in parts.items()}}


def no_tokens(name: str, parts: Sequence[str]) -> dict[str, str]:
    """Say of a column and its parts that they need tokens."""
    return dict.fromkeys((name, *(f"{name}/{part}" for part in parts)), NO_TOKENS)


def unchanged(a: Code, b: Code, rows: int) -> Tensor:
    """Return the share of each row's tokens that are the same in both codes, over all streams, (B,) float64.

    Tokens that only one of the codes has count as changed. NaN for codes without streams.
    """
    if not a.streams:
        return torch.full((rows,), math.nan, dtype=torch.float64)
    same = torch.zeros(rows, dtype=torch.int64)
    most = torch.zeros(rows, dtype=torch.int64)
    for one, other in zip(a.streams, b.streams, strict=True):
        equal, mine, theirs = _compare(one, other)
        same += equal
        most += torch.maximum(mine, theirs)
    return same.double() / most.double()


def valid(stream: Stream) -> Tensor:
    """Return which tokens of a stream count, bool, shaped like its indices."""
    indices = stream.indices
    if stream.lengths is None:
        return torch.ones_like(indices, dtype=torch.bool)
    mask = torch.arange(indices.shape[-1], device=indices.device) < stream.lengths.to(indices.device)[:, None]
    return mask.reshape(len(mask), *[1] * (indices.ndim - 2), indices.shape[-1]).expand_as(indices)


def _compare(a: Stream, b: Stream) -> tuple[Tensor, Tensor, Tensor]:
    here, there = valid(a), valid(b)
    counts = here.flatten(1).sum(1).cpu(), there.flatten(1).sum(1).cpu()
    width = min(a.indices.shape[-1], b.indices.shape[-1])
    if a.indices.shape[:-1] != b.indices.shape[:-1]:
        return torch.zeros_like(counts[0]), *counts
    equal = a.indices[..., :width] == b.indices[..., :width]
    both = here[..., :width] & there[..., :width]
    return (equal & both).flatten(1).sum(1).cpu(), *counts
