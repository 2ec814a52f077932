"""Spectral distances of single projects, under names of their own: audiocodecs' two and the STFT half of DAC's evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.resampler import resample
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._audio import by_row, checked_rate, spectrum, stable_mean
from ._signal import RESAMPLER
from ._speech import MONO
from .spectral import magnitude_term, triangles

L2_RATE = 16_000
L2_N_FFT = 1024
L2_HOP = 320
L2_MELS = 80
DB_FLOOR = 1e-10
_L2_PROTOCOL: Mapping[str, object] = {
    "rate": L2_RATE,
    "resampler": RESAMPLER,
    "channels": MONO,
    "frames": [L2_N_FFT, L2_HOP, "hann, periodic, centred frames, reflected"],
    "level": f"10 log10 of magnitudes, floor {DB_FLOOR:g}",
    "distance": "L2 over bins, mean over frames",
}

STFT_WINDOWS = (2048, 512)
STFT_FLOOR = 1e-5


@dataclass(frozen=True)
class MelL2Db:
    """Mel distance of audiocodecs: mean over frames of the L2 norm over 80 bands of a difference of levels; lower is better.

    At 16 kHz (resampled there), channels averaged; windows of 1,024, hop 320; HTK mel scale from 0 to 8 kHz, triangles not
    normalised, over **magnitudes**; the level is 10·log10 of the magnitude (floor 1e-10), that is half the usual decibel,
    because torchaudio's `AmplitudeToDB` is left at its setting for powers. Values are tens, where `mel_dac` is about 1.

    Reference: lucadellalib/audiocodecs `downstream/metrics/mel_distance.py` (2026).
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return MetricSpec(
            name="mel_l2_db",
            modalities=("audio",),
            summary="Mel distance of audiocodecs, 16 kHz, L2 of half-decibels",
            reference="lucadellalib/audiocodecs downstream/metrics/mel_distance.py",
            protocol={**_L2_PROTOCOL, "mel": [L2_MELS, "htk scale, not normalised"]},
            columns=(Column("mel_l2_db", "dB/2", False, "Mel distance (audiocodecs)", 1e-5, 3),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `mel_l2_db`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        rate = checked_rate("mel_l2_db", sample)
        bank = htk_filterbank(L2_RATE, L2_N_FFT, L2_MELS)
        return by_row(sample, lambda x, y: {"mel_l2_db": _l2(x, y, rate, bank.to(x.device))})


@dataclass(frozen=True)
class StftL2Db:
    """STFT distance of audiocodecs: as `mel_l2_db` on the 513 bins themselves; lower is better.

    Reference: lucadellalib/audiocodecs `downstream/metrics/stft_distance.py` (2026).
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return MetricSpec(
            name="stft_l2_db",
            modalities=("audio",),
            summary="STFT distance of audiocodecs, 16 kHz, L2 of half-decibels",
            reference="lucadellalib/audiocodecs downstream/metrics/stft_distance.py",
            protocol=_L2_PROTOCOL,
            columns=(Column("stft_l2_db", "dB/2", False, "STFT distance (audiocodecs)", 1e-5, 3),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `stft_l2_db`, (B,) float64, of a batch (B, C, T) of sound; raises as `MelL2Db` does."""
        rate = checked_rate("stft_l2_db", sample)
        return by_row(sample, lambda x, y: {"stft_l2_db": _l2(x, y, rate, None)})


@dataclass(frozen=True)
class StftDac:
    """STFT distance of DAC's evaluation: mean |S - Ŝ| + mean |log10 S² - log10 Ŝ²|, summed over two scales; lower is better.

    Windows of 2,048 and 512 samples, hop a quarter, periodic Hann, frames centred with reflection; S is lifted to 1e-5
    before it is squared and its logarithm taken (an earlier audiotools lifted the square); means over channels,
    bins and frames; at the sample's own rate, never resampled. A gain error counts. Computed in float64.

    Reference: Kumar et al., arXiv 2306.06546; descript-audiotools 0.7 `metrics.spectral.MultiScaleSTFTLoss()`.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return MetricSpec(
            name="stft_dac",
            modalities=("audio",),
            summary="STFT distance as in DAC's evaluation, at the sample's own rate",
            reference="Kumar et al. 2023, arXiv 2306.06546; descript-audiotools 0.7 MultiScaleSTFTLoss()",
            protocol={
                "windows": list(STFT_WINDOWS),
                "hop": "window / 4",
                "window": "hann, periodic, centred frames, reflected",
                "magnitude_floor": STFT_FLOOR,
                "terms": "L1 of magnitudes + L1 of log10(magnitude ** 2), weight 1 each, summed over scales",
                "rate": "the sample's own",
            },
            columns=(Column("stft_dac", "", False, "STFT distance (DAC) at the sample's own rate", 1e-6, 4),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `stft_dac`, (B,) float64, of a batch (B, C, T) of sound; raises as `MelL2Db` does."""
        checked_rate("stft_dac", sample)
        return by_row(sample, lambda x, y: {"stft_dac": math.fsum(_stft_term(x, y, w) for w in STFT_WINDOWS)})


def _stft_term(reference: Tensor, reconstruction: Tensor, window: int) -> float:
    s, r = (spectrum(x, window, window // 4, window).abs() for x in (reference, reconstruction))
    return magnitude_term(s, r, STFT_FLOOR)


def _l2(reference: Tensor, reconstruction: Tensor, rate: int, bank: Tensor | None) -> float:
    sides = []
    for x in (reference, reconstruction):
        mono = resample(x.mean(dim=0, keepdim=True), rate, L2_RATE)
        magnitude = spectrum(mono, L2_N_FFT, L2_HOP, L2_N_FFT)[0].abs()
        bands = magnitude if bank is None else bank @ magnitude
        sides.append(10 * bands.clamp(min=DB_FLOOR).log10())
    difference = (sides[0] - sides[1]).transpose(0, 1).contiguous()
    return stable_mean(torch.linalg.vector_norm(difference, dim=-1))


def htk_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Return mel filters on the HTK scale, (n_mels, n_fft // 2 + 1) float64: triangles of height 1 from 0 Hz to half the rate.

    `librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, htk=True, norm=None)`, and torchaudio's default.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, n_mels + 2, dtype=torch.float64) / 2595) - 1)
    return triangles(corners, sample_rate, n_fft)
