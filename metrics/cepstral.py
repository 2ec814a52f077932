"""Mel-cepstral distortion of speech from WORLD's spectral envelopes: with sound defaults, and as VERSA prints it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray

from ._optional import optional
from ._signal import RESAMPLER, Signal, mono_pair, refuse_unheard
from ._speech import MONO

Array = npt.NDArray[np.float64]

FRAME_MS = 5.0
_DECIBELS = 10 / math.log(10) * math.sqrt(2)
_ORDERS = ((20_000, 23), (32_000, 34))
_HIGHEST_ORDER = 39


@dataclass(frozen=True)
class Mcd:
    """Mel-cepstral distortion in dB: mean over frames of 10 / ln 10 · sqrt(2 Σ (c_d - ĉ_d)²), d from 1; lower is better.

    WORLD envelopes every 5 ms (F0 by Harvest, 71 to 800 Hz; CheapTrick at its default size), channels averaged, at the
    sample's own rate; mel cepstra of order 23 below 20 kHz, 34 below 32 kHz, else 39, with the all-pass constant alpha that
    fits the mel scale of the rate best (0.410 at 16 kHz, 0.466 at 24, 0.554 at 48; by `pysptk.util.mcepalpha`'s rule). c0,
    the level, does not count; frames are compared one to one, all of them, **without dynamic time warping**, so a delay
    counts. Values of different rates do not compare; nor do published ones, which differ in every setting named here.

    A silent reference or reconstruction, or less than 50 ms of sound, leave the row without a value.

    Reference: Kubichek 1993; Morise et al. 2016 (WORLD); pyworld 0.3 and pysptk 1.0 `sp2mc`.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return MetricSpec(
            name="mcd",
            modalities=("audio",),
            summary="Mel-cepstral distortion: WORLD, alpha by rate, without c0, without time warping",
            reference="Kubichek 1993; Morise et al. 2016, WORLD; pyworld 0.3",
            extra="audio",
            protocol={
                "f0": "harvest, 71-800 Hz",
                "envelope": "cheaptrick, default size",
                "frame_ms": FRAME_MS,
                "order": "23 below 20 kHz, 34 below 32 kHz, else 39",
                "alpha": "best fit to the mel scale of the rate",
                "c0": "excluded",
                "time_warping": "none",
                "frames": "all",
                "channels": MONO,
                "rate": "the sample's own",
            },
            columns=(Column("mcd", "dB", False, "Mel-cepstral distortion, without c0, no warping", 1e-4, 3),),
        )

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `mcd` of (C, T) signals.

        Raises:
            MissingExtra: The package `pyworld` is not installed.
            Undefined: Silence, or less than 50 ms.
            UsageError: Shapes differ or the rate is missing.
        """
        x, y, rate = mono_pair("mcd", reference, reconstruction, sample_rate)
        world = optional("pyworld", "mcd")
        refuse_unheard("mcd", x, y, rate, 0.05)
        order, alpha = order_of(rate), mel_alpha(rate)
        size = int(world.get_cheaptrick_fft_size(rate, 71.0))
        cepstra = [_cepstra(world, signal, rate, (71.0, 800.0), size, order, alpha) for signal in (x, y)]
        return {"mcd": _distortion(cepstra[0][:, 1:], cepstra[1][:, 1:])}


@dataclass(frozen=True)
class McdVersa:
    """Mel-cepstral distortion as VERSA computes it by default, for comparison with its tables; lower is better.

    WORLD every 5 ms (Harvest 40 to 800 Hz, CheapTrick with 1,024 points), after scaling to 16 bits and a 70 Hz high-pass
    of 255 taps; mel cepstra of order 39 with alpha 0.466 **whatever the rate**; **c0 included**, so a gain counts; no time
    warping. Channels are averaged (VERSA takes the first) and the rate is the sample's own; above 24 kHz, where 1,024
    points are too few for the lowest pitch, the row is brought to 24 kHz.

    Reference: wavlab-speech/versa `sequence_metrics/mcd_f0.py`, defaults, `dtw=False`; from espnet.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return MetricSpec(
            name="mcd_versa",
            modalities=("audio",),
            summary="Mel-cepstral distortion as VERSA's defaults: order 39, alpha 0.466, with c0",
            reference="wavlab-speech/versa sequence_metrics/mcd_f0.py",
            extra="audio",
            protocol={
                "f0": "harvest, 40-800 Hz",
                "envelope": "cheaptrick, 1024",
                "frame_ms": FRAME_MS,
                "order": 39,
                "alpha": 0.466,
                "c0": "included",
                "high_pass_hz": 70,
                "time_warping": "none",
                "frames": "all",
                "channels": MONO,
                "rate": f"the sample's own, at most 24 kHz ({RESAMPLER})",
            },
            columns=(Column("mcd_versa", "dB", False, "Mel-cepstral distortion, VERSA's defaults", 1e-4, 3),),
        )

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `mcd_versa` of (C, T) signals; raises as `Mcd.row` does."""
        target = 24_000 if (sample_rate or 0) > 24_000 else None
        x, y, rate = mono_pair("mcd_versa", reference, reconstruction, sample_rate, target)
        world = optional("pyworld", "mcd_versa")
        refuse_unheard("mcd_versa", x, y, rate, 0.05)
        cepstra = [
            _cepstra(world, _high_passed(signal * 32767, rate), rate, (40.0, 800.0), 1024, 39, 0.466)
            for signal in (x, y)
        ]
        return {"mcd_versa": _distortion(*cepstra)}


def order_of(rate: int) -> int:
    """Return the order of the mel cepstrum `mcd` takes at a rate in Hz."""
    return next((order for below, order in _ORDERS if rate < below), _HIGHEST_ORDER)


@lru_cache(maxsize=16)
def mel_alpha(rate: int) -> float:
    """Return the all-pass constant, in steps of 0.001, whose warping is nearest to the mel scale from 0 to rate / 2."""
    points = 1000
    steps = np.arange(points)
    mel = np.log1p(rate / 2 / points * steps / 1000)
    omega = np.pi / points * steps
    candidates = np.arange(0, 1, 0.001)[:, None]
    warped = np.arctan2((1 - candidates**2) * np.sin(omega), (1 + candidates**2) * np.cos(omega) - 2 * candidates)
    errors = np.square(warped / warped[:, -1:] - mel / mel[-1]).mean(axis=1)
    return round(float(candidates[int(errors.argmin()), 0]), 3)


@lru_cache(maxsize=16)
def warping_matrix(size: int, order: int, alpha: float) -> Array:
    """Return the matrix (order + 1, size) that turns a cepstrum into a mel cepstrum: Oppenheim and Johnson's recursion."""
    warped = np.zeros((order + 1, size))
    inputs = np.eye(size)
    for k in range(size - 1, -1, -1):
        before = warped.copy()
        warped[0] = inputs[k] + alpha * before[0]
        if order >= 1:
            warped[1] = (1 - alpha**2) * before[0] + alpha * before[1]
        for j in range(2, order + 1):
            warped[j] = before[j - 1] + alpha * (before[j] - warped[j - 1])
    return warped


def mel_cepstra(power: Array, order: int, alpha: float) -> Array:
    """Return mel cepstra (frames, order + 1) of power envelopes (frames, n_fft // 2 + 1): log of power halved in c0 only."""
    cepstra = np.fft.irfft(np.log(power))[:, : power.shape[1]]
    cepstra[:, 0] /= 2
    return cepstra @ warping_matrix(power.shape[1], order, alpha).T


def _cepstra(
    world: Any, signal: Signal, rate: int, pitch: tuple[float, float], size: int, order: int, alpha: float
) -> Array:
    f0, times = world.harvest(signal, rate, f0_floor=pitch[0], f0_ceil=pitch[1], frame_period=FRAME_MS)
    return mel_cepstra(world.cheaptrick(signal, f0, times, rate, fft_size=size), order, alpha)


def _distortion(reference: Array, reconstruction: Array) -> float:
    return float(np.mean(_DECIBELS * np.sqrt(np.square(reference - reconstruction).sum(axis=1))))


def _high_passed(signal: Signal, rate: int) -> Signal:
    from scipy.signal import firwin, lfilter

    taps = firwin(255, 70 / (rate // 2), pass_zero=False)
    return np.asarray(lfilter(taps, 1, signal), np.float64)
