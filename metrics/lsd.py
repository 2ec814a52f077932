"""Log-spectral distance of sound, with its floor and its band stated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._audio import by_row, checked_rate, spectrum, stable_sum

N_FFT = 2048
HOP = 512
POWER_FLOOR = 1e-8


@dataclass(frozen=True)
class Lsd:
    """Log-spectral distance: mean over frames of sqrt(mean over bins of (log10 |X|² - log10 |Y|²)²); lower is better.

    Hann window and transform of 2,048 samples, hop 512, frames centred with reflection, at the sample's own rate; powers
    below 1e-8 are lifted to it; frames of all channels count alike. The unit is the decade of power ("bel"); ten times
    that is dB. Computed in float64.

    **The floor and the band decide this number.** Empty bins count as much as loud ones: a resampler alone moves it by
    0.1 to 0.8, depending on its transition band. `max_hz` leaves out the bins above a frequency, for comparing codecs on
    the band they share; the column then carries it (`lsd_7000hz`). Published values differ in the floor (1e-8, 1e-12,
    none), the rate and natural instead of decadic logarithms. A gain error counts; a shift hardly does. Digital silence
    is defined: it is the floor.

    Args:
        max_hz: Highest frequency that counts; 0 counts all.

    Reference: Gray and Markel 1976; in the form of AERO (arXiv 2211.12232) and NU-Wave 2 (arXiv 2206.08545).
    """

    max_hz: int = 0

    undefined: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if self.max_hz < 0:
            raise UsageError(f"lsd: max_hz is a frequency in Hz, or 0 for all; got {self.max_hz!r}")

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        name = f"lsd_{self.max_hz}hz" if self.max_hz else "lsd"
        band = f"up to {self.max_hz} Hz" if self.max_hz else "full band"
        return MetricSpec(
            name=name,
            modalities=("audio",),
            summary=f"Log-spectral distance, {band}, at the sample's own rate",
            reference="Gray and Markel 1976; AERO, arXiv 2211.12232",
            protocol={
                "n_fft": N_FFT,
                "hop": HOP,
                "window": "hann, periodic, centred frames, reflected",
                "power_floor": POWER_FLOOR,
                "logarithm": "log10 of power",
                "max_hz": self.max_hz,
                "rate": "the sample's own",
            },
            columns=(Column(name, "decades", False, f"Log-spectral distance, {band}", 1e-6, 4),),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the column, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        name = self.spec.name
        rate = checked_rate(name, sample)
        bins = N_FFT // 2 + 1
        if self.max_hz:
            bins = min(bins, math.floor(self.max_hz * N_FFT / rate) + 1)
        return by_row(sample, lambda x, y: {name: _lsd(x, y, bins)})


def _lsd(reference: Tensor, reconstruction: Tensor, bins: int) -> float:
    x, y = (_log_power(signal, bins) for signal in (reference, reconstruction))
    squares = (x - y).square().transpose(1, 2).contiguous()
    per_frame = squares.mean(dim=-1).sqrt()
    return stable_sum(per_frame) / per_frame.numel()


def _log_power(x: Tensor, bins: int) -> Tensor:
    transform = spectrum(x, N_FFT, HOP, N_FFT)[:, :bins]
    return (transform.real.square() + transform.imag.square()).clamp(min=POWER_FLOOR).log10()
