"""Spectral distances of sound: multi-resolution STFT and the mel distance of DAC's evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._audio import by_row, checked_rate, spectrum, stable_mean, stable_sum

_SHORT_CLIPS = "a clip of at most n_fft / 2 samples is zero-padded at its end to n_fft, then reflected as usual"


@dataclass(frozen=True)
class Resolution:
    """One short-time transform of the multi-resolution distance, in samples."""

    n_fft: int
    hop: int
    window: int


RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))
"""Of Parallel WaveGAN, and auraloss's defaults."""

POWER_FLOOR = 1e-8
"""Power below which a bin of the STFT is lifted to it (auraloss's `eps`): magnitude 1e-4."""


@dataclass(frozen=True)
class MultiResolutionStft:
    """Multi-resolution STFT distance: the mean over three resolutions of spectral convergence + log-magnitude distance.

    With S the reference's magnitudes and Ŝ the reconstruction's, over (channels, bins, frames) of one row:
    spectral convergence = |S - Ŝ|_F / |S|_F; log-magnitude distance = mean |ln S - ln Ŝ|. FFT 1024 / 2048 / 512, hop
    120 / 240 / 50, Hann window 600 / 1200 / 240 samples, frames centred with reflection, magnitudes
    sqrt(max(power, 1e-8)); all at the sample's own rate, so numbers of suites with different rates do not compare.
    Both terms depend on the level: a gain error counts. Computed in float64.

    A row whose reference is digital silence is undefined: spectral convergence divides by its magnitude. A clip of at
    most n_fft / 2 samples, too short to be reflected, is extended with zeros to n_fft samples for that resolution.

    Reference: Yamamoto et al., "Parallel WaveGAN", arXiv 1910.11480; Arik et al., arXiv 1808.06719. One row equals
    auraloss 0.4 `MultiResolutionSTFTLoss()(reconstruction, reference)` of that row alone.
    """

    undefined: ClassVar[Mapping[str, str]] = {
        "mrstft": "the reference is digital silence: spectral convergence divides by its magnitude"
    }

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="mrstft",
            modalities=("audio",),
            summary="Multi-resolution STFT: spectral convergence + log-magnitude L1, mean of three resolutions",
            reference="Yamamoto et al. 2019, arXiv 1910.11480; auraloss 0.4 MultiResolutionSTFTLoss",
            protocol={
                "resolutions": [[r.n_fft, r.hop, r.window] for r in RESOLUTIONS],
                "window": "hann, periodic, centred frames, reflected",
                "power_floor": POWER_FLOOR,
                "terms": "spectral convergence + mean |ln magnitude difference|, weight 1 each",
                "short_clips": _SHORT_CLIPS,
                "rate": "the sample's own",
            },
            columns=(Column("mrstft", "", False, "Multi-resolution STFT distance at the sample's own rate", 1e-6, 4),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `mrstft`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        checked_rate("mrstft", sample)
        return by_row(sample, _mrstft)


def _mrstft(reference: Tensor, reconstruction: Tensor) -> dict[str, float]:
    if not bool(reference.any()):
        return {"mrstft": math.nan}
    terms = [_convergence_and_log(reference, reconstruction, resolution) for resolution in RESOLUTIONS]
    return {"mrstft": math.fsum(terms) / len(terms)}


def _convergence_and_log(reference: Tensor, reconstruction: Tensor, resolution: Resolution) -> float:
    s, r = (_magnitude(x, resolution) for x in (reference, reconstruction))
    convergence = math.sqrt(stable_sum((s - r).square()) / stable_sum(s.square()))
    return convergence + stable_mean((s.log() - r.log()).abs())


def _magnitude(x: Tensor, resolution: Resolution) -> Tensor:
    transform = spectrum(x, resolution.n_fft, resolution.hop, resolution.window)
    return (transform.real.square() + transform.imag.square()).clamp(min=POWER_FLOOR).sqrt()


@dataclass(frozen=True)
class MelScale:
    """One scale of the mel distance: `n_mels` bands of spectra with a window of `window` samples, hop window / 4."""

    n_mels: int
    window: int


MEL_SCALES = (MelScale(150, 2048), MelScale(80, 512))
"""Defaults of DAC's `MelSpectrogramLoss`, which its evaluation uses (its training uses seven other scales)."""

MEL_FLOOR = 1e-5
"""Mel magnitude below which a band is lifted to it before the logarithm."""


@dataclass(frozen=True)
class MelDistance:
    """Mel distance of DAC's evaluation: mean |M - M̂| + mean |log10 M² - log10 M̂²|, summed over two scales.

    M and M̂ are mel magnitudes (power 1) of reference and reconstruction: 150 bands with a window of 2048 samples and
    80 with 512, hop window / 4, periodic Hann, frames centred with reflection; Slaney's mel scale and area
    normalisation from 0 Hz to half the rate, as librosa's default; M is lifted to 1e-5 before it is squared and its
    logarithm taken (not in the linear term). Means run over channels, bands and frames. Computed in float64.

    **Everything is in samples and at the sample's own rate, never resampled**: DAC's evaluation measures at 22.05 and
    44.1 kHz, others at 16 or 24 kHz, and those numbers do not compare. A gain error counts. Digital silence is defined
    (the floor decides). Bands narrower than a bin of the transform can be empty and then add 0, as in the reference
    implementation. A clip of at most window / 2 samples is extended with zeros to the window's length.

    Reference: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", arXiv 2306.06546;
    descript-audiotools 0.7 `metrics.spectral.MelSpectrogramLoss()` with its defaults.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="mel",
            modalities=("audio",),
            summary="Mel distance as in DAC's evaluation, at the sample's own rate",
            reference="Kumar et al. 2023, arXiv 2306.06546; descript-audiotools 0.7 MelSpectrogramLoss()",
            protocol={
                "scales": [[scale.n_mels, scale.window, scale.window // 4] for scale in MEL_SCALES],
                "window": "hann, periodic, centred frames, reflected",
                "mel": "slaney scale, slaney norm, 0 Hz to half the rate",
                "floor": MEL_FLOOR,
                "terms": "L1 of magnitudes + L1 of log10(magnitude ** 2), weight 1 each, summed over scales",
                "short_clips": _SHORT_CLIPS,
                "rate": "the sample's own",
            },
            columns=(Column("mel_dac", "", False, "Mel distance (DAC) at the sample's own rate", 1e-6, 4),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `mel_dac`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        rate = checked_rate("mel", sample)
        device = torch.device("cpu") if sample.reference.device.type == "mps" else sample.reference.device
        banks = {scale: mel_filterbank(rate, scale.window, scale.n_mels).to(device) for scale in MEL_SCALES}

        def measure(reference: Tensor, reconstruction: Tensor) -> dict[str, float]:
            terms = [_mel_term(reference, reconstruction, scale, bank) for scale, bank in banks.items()]
            return {"mel_dac": math.fsum(terms)}

        return by_row(sample, measure)


def _mel_term(reference: Tensor, reconstruction: Tensor, scale: MelScale, bank: Tensor) -> float:
    m, r = (
        bank @ spectrum(x, scale.window, scale.window // 4, scale.window).abs() for x in (reference, reconstruction)
    )
    return magnitude_term(m, r, MEL_FLOOR)


def magnitude_term(reference: Tensor, reconstruction: Tensor, floor: float) -> float:
    """Return DAC's distance of two spectra of magnitudes: mean |S - Ŝ| + mean |log10 S² - log10 Ŝ²|, S at least `floor`."""
    logs = [side.clamp(min=floor).square().log10() for side in (reference, reconstruction)]
    return stable_mean((reference - reconstruction).abs()) + stable_mean((logs[0] - logs[1]).abs())


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Return Slaney's mel filters, (n_mels, n_fft // 2 + 1) float64, from 0 Hz to sample_rate / 2.

    Triangles whose corners are equally spaced in mel (linear up to 1 kHz, 15 mel; logarithmic above, 27 mel a factor of
    6.4), each scaled by 2 / width in Hz: `librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)`.
    """
    top = _hz_to_mel(sample_rate / 2)
    corners = _mel_to_hz(torch.linspace(0, top, n_mels + 2, dtype=torch.float64))
    return triangles(corners, sample_rate, n_fft) * (2 / (corners[2:] - corners[:-2]))[:, None]


def triangles(corners: Tensor, sample_rate: int, n_fft: int) -> Tensor:
    """Return filters of height 1 over the bins of a transform, (n, n_fft // 2 + 1) float64, from n + 2 corners in Hz."""
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)


_LINEAR_HZ_PER_MEL = 200 / 3
_LOG_START_MEL = 15.0
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ_PER_MEL if hz < 1000 else _LOG_START_MEL + math.log(hz / 1000) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    logarithmic = 1000 * torch.exp(_LOG_STEP * (mel - _LOG_START_MEL))
    return torch.where(mel < _LOG_START_MEL, mel * _LINEAR_HZ_PER_MEL, logarithmic)
