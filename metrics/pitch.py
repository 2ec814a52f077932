"""Pitch and voicing errors of speech: F0 in cents over frames voiced on both sides, voicing error and F1 over all frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tokbench.errors import Undefined, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray

from ._optional import optional
from ._packaged import carried_digest
from ._signal import RESAMPLER, Signal, mono_pair
from ._speech import MONO

Pitch = npt.NDArray[np.float64]
"""(frames,) Hz; 0 where a frame is unvoiced."""

RATE = 16_000
LOWEST_HZ, HIGHEST_HZ = 50.0, 550.0
SHORTEST_SECONDS = 0.064
VOICED_CONFIDENCE = 0.5

NO_PITCH = "no frame is voiced on both sides, so there is no pitch to compare"
TRACKERS = ("swift-f0", "harvest")


class Tracker(Protocol):
    """Anything that gives the pitch of each frame of a 16 kHz signal."""

    def __call__(self, signal: Signal) -> Pitch: ...


@dataclass(frozen=True)
class F0:
    """Pitch error in cents and voicing error, between 50 and 550 Hz, channels averaged, at 16 kHz.

    `f0_rmse_cents` is the root mean square of 1200·log2(f̂ / f) over the frames of a row that are **voiced on both
    sides**, then the mean over rows: frames with a zero on one side, which other tools leave in, are a voicing error and
    count there. `f0_vuv_error` is the share of all frames of the set that are voiced on one side only; `f0_vuv_f1` is
    2·hits / (2·hits + misses + false alarms) of the reconstruction's voiced frames, over the set. Frames are compared one
    to one, without warping: a delay counts from about half a frame on. An octave error is 1200 cents and dominates.

    Args:
        tracker: `swift-f0` (a small network in the wheel of swift-f0; frames of 16 ms, voiced from confidence 0.5) or
            `harvest` (WORLD, frames of 10 ms; columns `f0_harvest_*`).

    Reference: swift-f0 0.3 (arXiv 2508.18440); Morise 2017 (Harvest), pyworld 0.3.
    """

    tracker: str = "swift-f0"

    undefined: ClassVar[Mapping[str, str]] = {"f0_rmse_cents": NO_PITCH, "f0_harvest_rmse_cents": NO_PITCH}

    def __post_init__(self) -> None:
        if self.tracker not in TRACKERS:
            raise UsageError(f"f0: tracker is one of {', '.join(TRACKERS)}; got {self.tracker!r}")

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the network's sha256 is one of them."""
        swift = self.tracker == "swift-f0"
        name = "f0" if swift else "f0_harvest"
        return MetricSpec(
            name=name,
            modalities=("audio",),
            summary=f"Pitch error over frames voiced on both sides, and voicing error ({self.tracker})",
            reference="swift-f0 0.3, arXiv 2508.18440" if swift else "Morise 2017, Harvest; pyworld 0.3",
            extra="audio",
            protocol={
                "tracker": self.tracker,
                "frame_ms": 16 if swift else 10,
                "band_hz": [LOWEST_HZ, HIGHEST_HZ],
                "voiced": f"confidence >= {VOICED_CONFIDENCE}" if swift else "f0 > 0",
                "rmse": "frames voiced on both sides, mean of rows",
                "rate": RATE,
                "resampler": RESAMPLER,
                "channels": MONO,
                "time_warping": "none",
                **({"weights": carried_digest("swift_f0", "model.onnx")} if swift else {}),
            },
            columns=(
                Column(f"{name}_rmse_cents", "cents", False, "RMS pitch error, frames voiced on both sides", 0.1, 1),
                *voicing_columns(name),
            ),
        )

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return the row columns of (C, T) signals.

        Raises:
            MissingExtra: The tracker's package is not installed.
            NotApplicable: The rate is below 8 kHz.
            Undefined: Less than 64 ms of sound.
            UsageError: Shapes differ or the rate is missing.
        """
        name = self.spec.name
        x, y, rate = mono_pair(name, reference, reconstruction, sample_rate, RATE, at_least=8_000)
        if x.size < SHORTEST_SECONDS * rate:
            raise Undefined(f"{name}: shorter than {SHORTEST_SECONDS * 1000:g} ms")
        track: Tracker = _swift(name) if self.tracker == "swift-f0" else _harvest(name)
        f, g = track(x), track(y)
        return {f"{name}_rmse_cents": rmse_cents(f, g), **voicing_counts(name, f > 0, g > 0)}


def voicing_columns(name: str) -> tuple[Column, ...]:
    """Return the columns of voicing: two ratios over the set, and the counts they are made of."""
    return (
        Column(
            f"{name}_vuv_error",
            "",
            False,
            "Share of frames voiced on one side only, over the set",
            1e-4,
            4,
            where="corpus",
            ratio=(f"{name}_vuv_wrong", f"{name}_frames"),
        ),
        Column(
            f"{name}_vuv_f1",
            "",
            True,
            "F1 of voiced frames, over the set",
            1e-4,
            4,
            where="corpus",
            ratio=(f"{name}_vuv_hits_twice", f"{name}_vuv_voiced"),
        ),
        Column(f"{name}_vuv_wrong", "frames", False, "Frames voiced on one side only", 1.0, 0, level=False),
        Column(f"{name}_frames", "frames", None, "Frames compared", 0.0, 0, level=False),
        Column(f"{name}_vuv_hits_twice", "frames", None, "Twice the frames voiced on both", 2.0, 0, level=False),
        Column(f"{name}_vuv_voiced", "frames", None, "Voiced frames of both sides, added", 2.0, 0, level=False),
    )


def voicing_counts(
    name: str, reference: npt.NDArray[np.bool_], reconstruction: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Return the counts behind `voicing_columns` of one row's (frames,) decisions."""
    return {
        f"{name}_vuv_wrong": float(np.count_nonzero(reference != reconstruction)),
        f"{name}_frames": float(reference.size),
        f"{name}_vuv_hits_twice": 2.0 * int(np.count_nonzero(reference & reconstruction)),
        f"{name}_vuv_voiced": float(np.count_nonzero(reference) + np.count_nonzero(reconstruction)),
    }


def rmse_cents(reference: Pitch, reconstruction: Pitch) -> float:
    """Return the RMS pitch error in cents over frames where both are above 0 Hz; NaN where there is none."""
    both = (reference > 0) & (reconstruction > 0)
    if not both.any():
        return math.nan
    cents = 1200 * np.log2(reconstruction[both] / reference[both])
    return float(np.sqrt(np.mean(np.square(cents))))


def _swift(metric: str) -> Tracker:
    detector = _swift_detector(metric)

    def track(signal: Signal) -> Pitch:
        found = detector.detect(signal.astype(np.float32), RATE, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)
        return np.where(found.confidence >= VOICED_CONFIDENCE, found.pitch_hz, 0.0)

    return track


@lru_cache(maxsize=1)
def _swift_detector(metric: str) -> Any:
    return optional("swift_f0", metric, package="swift-f0").SwiftF0(threads=1, spin=False)


def _harvest(metric: str) -> Tracker:
    world = optional("pyworld", metric)

    def track(signal: Signal) -> Pitch:
        f0, _ = world.harvest(signal, RATE, f0_floor=LOWEST_HZ, f0_ceil=HIGHEST_HZ, frame_period=10.0)
        return np.asarray(f0, np.float64)

    return track
