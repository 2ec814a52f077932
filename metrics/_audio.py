"""Shared parts of the audio metrics: checked float64 rows, sums in a fixed order, short-time spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Sample

_BLOCK = 4096


def checked_rate(metric: str, sample: Sample) -> int:
    """Return the sample rate of an audio sample.

    Raises:
        NotApplicable: The tokenizer is not an audio tokenizer.
        UsageError: The signals are not a pair of (B, C, T) tensors, or the sample rate is missing.
    """
    if sample.spec.modality != "audio":
        raise NotApplicable(f"{metric} compares sound; {sample.spec.name} is a tokenizer of {sample.spec.modality}")
    reference, reconstruction = tuple(sample.reference.shape), tuple(sample.reconstruction.shape)
    if len(reference) != 3 or reference != reconstruction:
        raise UsageError(
            f"{metric} needs reference and reconstruction of one shape (B, C, T); got {reference} and "
            f"{reconstruction}: cut both to the length of the reference first"
        )
    if not sample.sample_rate or sample.sample_rate < 0:
        raise UsageError(f"{metric} needs the sample rate in Hz; got {sample.sample_rate!r}: set Sample.sample_rate")
    return sample.sample_rate


def row_pairs(sample: Sample) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield reference and reconstruction of one row at a time: (C, T) float64 in memory of their own.

    A copy a row is what keeps values identical to the bit whatever the batch: transforms and matrix products of the
    vendor libraries may round differently with the batch shape or the alignment of a view.
    """
    for reference, reconstruction in zip(sample.reference, sample.reconstruction, strict=True):
        yield _float64(reference), _float64(reconstruction)


def by_row(sample: Sample, measure: Callable[[Tensor, Tensor], Mapping[str, float]]) -> dict[str, Tensor]:
    """Apply `measure` to every row and return its columns as (B,) float64 CPU tensors."""
    rows = [measure(reference, reconstruction) for reference, reconstruction in row_pairs(sample)]
    return columns(rows)


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Turn rows with the same keys into columns: (B,) float64 CPU tensors. No rows, no columns."""
    if not rows:
        return {}
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def stable_sum(x: Tensor) -> float:
    """Sum all elements in an order that depends on their number only, not on threads or on a batch.

    Blocks of 4096 are summed one by one, then their sums, until one number is left.
    """
    flat = x.reshape(-1)
    while flat.numel() > 1:
        padding = -flat.numel() % _BLOCK if flat.numel() > _BLOCK else 0
        flat = torch.nn.functional.pad(flat, (0, padding))
        flat = flat.reshape(-1, min(_BLOCK, flat.numel())).sum(dim=-1)
    return float(flat.item()) if flat.numel() else 0.0


def stable_mean(x: Tensor) -> float:
    """Mean of all elements, summed by `stable_sum`."""
    return stable_sum(x) / x.numel()


def spectrum(x: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """Return the short-time Fourier transform (C, n_fft // 2 + 1, frames), complex128, of a row (C, T) float64.

    Periodic Hann window of `window` samples centred in `n_fft`; frames centred at 0, hop, 2·hop, …; the signal is
    reflected by n_fft / 2 samples at both ends. A clip of at most n_fft / 2 samples cannot be reflected that far: it is
    first extended with zeros at its end to n_fft samples.
    """
    if x.shape[-1] <= n_fft // 2:
        x = torch.nn.functional.pad(x, (0, n_fft - x.shape[-1]))
    taper = torch.hann_window(window, periodic=True, dtype=x.dtype, device=x.device)
    return torch.stft(x, n_fft, hop, window, taper, center=True, pad_mode="reflect", return_complex=True)


def _float64(x: Tensor) -> Tensor:
    x = x.detach()
    if x.device.type == "mps":  # has no float64
        x = x.cpu()
    return x.to(torch.float64, copy=True).contiguous()
