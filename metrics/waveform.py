"""Waveform fidelity of sound: SI-SDR as it is and after removing the codec's delay, with the delay and the gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._audio import by_row, checked_rate, stable_mean, stable_sum

CAP_DB = 100.0
"""Largest SI-SDR reported, and with a minus sign the smallest: beyond it only rounding is measured."""

SILENCE_POWER = 1e-20
"""Mean square, after removing the mean, up to which a channel counts as silent: -200 dB of full scale."""

_SILENT = "a channel of the reference or of the reconstruction is silent (-200 dBFS or less)"


@dataclass(frozen=True)
class SiSdr:
    """Scale-invariant signal-to-distortion ratio, raw and after removing the delay of each row.

    `si_sdr` is 10·log10(|a·s|² / |a·s - ŝ|²), a = <ŝ, s> / <s, s>, of the zero-mean reference s and reconstruction ŝ:
    a channel at a time, then the mean over channels. It is blind to gain, offset and polarity, and a constant shift of
    a few samples destroys it: 8 samples take speech at 20 dB to about -8 dB. Values stop at ±100 dB; rows that reach
    +100 dB are the reference up to gain and offset; `si_sdr_identical` is 1 for them, else 0.

    `delay` is the integer lag, in samples at the sample's own rate, at which |cross-correlation| of the zero-mean
    signals (summed over channels) is largest; ties go to the smallest lag. **A positive delay means that the
    reconstruction comes late**: reconstruction[t + delay] matches reference[t]. It is sought within ±`max_delay_ms` and
    at most half the clip. `si_sdr_aligned` is the SI-SDR of what overlaps once that lag is removed, means taken on the
    overlap. A codec's own delay is one number: `delay_median` is the median over rows, `delay_agreement` the share of
    rows within one sample of it. Where rows do not agree their delays are noise and `si_sdr_aligned` is optimistic.

    `gain_db` is 20·log10|a| after alignment over all channels, the gain that fits best (it also falls when the
    waveforms decorrelate); `level_db` is the ratio of root mean squares: 0 dB for a tokenizer that restores the level,
    whatever its waveform.

    A row with a silent channel is undefined. Every value is a function of its own row, to the bit.

    Args:
        max_delay_ms: Half-width of the range of delays, in milliseconds. The default covers a frame of Mimi (80 ms) and
            AAC's usual priming (2,112 samples, 48 ms at 44.1 kHz).

    Reference: Le Roux et al., "SDR: half-baked or well done?", ICASSP 2019, arXiv 1811.02508;
    torchmetrics `scale_invariant_signal_distortion_ratio(zero_mean=True)`.
    """

    max_delay_ms: float = 100.0

    undefined: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("si_sdr", "si_sdr_aligned", "si_sdr_identical", "delay", "gain_db", "level_db"), _SILENT
    )

    def __post_init__(self) -> None:
        if not 0 <= self.max_delay_ms < math.inf:
            raise UsageError(f"si_sdr: max_delay_ms must be 0 or more milliseconds; got {self.max_delay_ms!r}")

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="si_sdr",
            modalities=("audio",),
            summary="SI-SDR raw and delay-aligned, with the delay and the gain of the tokenizer",
            reference="Le Roux et al. 2019, arXiv 1811.02508; torchmetrics scale_invariant_signal_distortion_ratio",
            protocol={
                "zero_mean": True,
                "channels": "mean of channels",
                "cap_db": CAP_DB,
                "silence_power": SILENCE_POWER,
                "max_delay_ms": float(self.max_delay_ms),
                "delay": "largest |cross-correlation|, channels summed, integer samples, at most half the clip",
            },
            columns=(
                Column("si_sdr", "dB", True, "SI-SDR, zero-mean, no alignment, capped at ±100 dB", 1e-3, 2),
                Column("si_sdr_aligned", "dB", True, "SI-SDR after removing the row's integer delay", 1e-3, 2),
                Column("si_sdr_identical", "", None, "1 where si_sdr is at the +100 dB cap", 0.0, 0, level=False),
                Column("delay", "samples", None, "Delay of the reconstruction; positive is late", 0.0, 0, level=False),
                Column("gain_db", "dB", None, "Gain that fits best after alignment", 1e-3, 2, level=False),
                Column(
                    "level_db", "dB", None, "RMS of the reconstruction over RMS of the reference", 1e-3, 2, level=False
                ),
                Column(
                    "delay_median", "samples", None, "Median delay over rows; positive is late", 0.0, 1, where="corpus"
                ),
                Column(
                    "delay_agreement", "", True, "Share of rows within one sample of it", 1e-9, 3, "corpus", level=False
                ),
            ),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the row columns, each (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        rate = checked_rate("si_sdr", sample)
        samples = sample.reference.shape[-1]
        max_lag = min(round(self.max_delay_ms * rate / 1000), samples // 2)
        return by_row(sample, lambda reference, reconstruction: _measure(reference, reconstruction, max_lag))

    def summarise(self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]) -> dict[str, float | None]:  # noqa: ARG002
        """Return the median delay and the share of rows that agree with it."""
        delays = [value for value in rows["delay"] if value is not None]
        middle = float(median(delays)) if delays else None
        near = sum(abs(value - middle) <= 1 for value in delays) if middle is not None else 0
        return {
            "delay_median": middle,
            "delay_agreement": near / len(delays) if delays else None,
        }


def _measure(reference: Tensor, reconstruction: Tensor, max_lag: int) -> dict[str, float]:
    """Return all row columns of one row (C, T)."""
    reference, reconstruction = _zero_mean(reference), _zero_mean(reconstruction)
    if _any_silent(reference) or _any_silent(reconstruction):
        return dict.fromkeys(SiSdr.undefined, math.nan)
    lag = estimate_delay(reference, reconstruction, max_lag)
    early, late = _overlap(reference, reconstruction, lag)
    early, late = _zero_mean(early), _zero_mean(late)
    level = 10 * math.log10(stable_sum(reconstruction.square()) / stable_sum(reference.square()))
    aligned = gain = math.nan
    if not (_any_silent(early) or _any_silent(late)):
        aligned = _si_sdr(early, late)
        scale = abs(stable_sum(early * late)) / stable_sum(early.square())
        gain = 20 * math.log10(scale) if scale > 0 else math.nan
    raw = _si_sdr(reference, reconstruction)
    return {
        "si_sdr": raw,
        "si_sdr_aligned": aligned,
        "si_sdr_identical": float(raw == CAP_DB),
        "delay": float(lag),
        "gain_db": gain,
        "level_db": level,
    }


def estimate_delay(reference: Tensor, reconstruction: Tensor, max_lag: int) -> int:
    """Return the lag in [-max_lag, max_lag] of the largest |cross-correlation|; positive when `reconstruction` is late.

    Args:
        reference: (C, T) zero-mean float64.
        reconstruction: Same shape.
        max_lag: Largest lag tried, in samples, below T.
    """
    if max_lag == 0:
        return 0
    size = 1 << (reference.shape[-1] + max_lag - 1).bit_length()  # no lag of interest wraps around
    spectra = torch.fft.rfft(reference, n=size).conj() * torch.fft.rfft(reconstruction, n=size)
    correlation = torch.fft.irfft(spectra, n=size).sum(dim=0).abs()
    steps = torch.arange(1, max_lag + 1, device=correlation.device)
    lags = torch.cat([steps.new_zeros(1), torch.stack([steps, -steps], dim=1).reshape(-1)])  # 0, 1, -1, 2, -2, …
    values = correlation[lags % size]
    # Rounding of the transform must not choose between equal peaks of a periodic sound: take the first of them.
    first = torch.nonzero(values >= values.max() * (1 - 1e-9))[0, 0]
    return int(lags[first].item())


def _si_sdr(reference: Tensor, reconstruction: Tensor) -> float:
    """Mean over channels of the SI-SDR in dB of zero-mean, non-silent (C, T) signals."""
    values = [_channel_si_sdr(s, r) for s, r in zip(reference, reconstruction, strict=True)]
    return math.fsum(values) / len(values)


def _channel_si_sdr(reference: Tensor, reconstruction: Tensor) -> float:
    scale = stable_sum(reconstruction * reference) / stable_sum(reference.square())
    target = scale * reference
    signal, noise = stable_sum(target.square()), stable_sum((target - reconstruction).square())
    if noise <= 0:
        return CAP_DB
    if signal <= 0:
        return -CAP_DB
    return min(max(10 * math.log10(signal / noise), -CAP_DB), CAP_DB)


def _overlap(reference: Tensor, reconstruction: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """Cut both to what they share once the reconstruction is moved earlier by `lag` samples."""
    samples = reference.shape[-1]
    if lag >= 0:
        return reference[:, : samples - lag], reconstruction[:, lag:]
    return reference[:, -lag:], reconstruction[:, : samples + lag]


def _zero_mean(x: Tensor) -> Tensor:
    return torch.stack([channel - stable_mean(channel) for channel in x]) if x.shape[-1] else x


def _any_silent(x: Tensor) -> bool:
    return x.shape[-1] == 0 or any(stable_mean(channel.square()) <= SILENCE_POWER for channel in x)
