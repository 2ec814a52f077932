"""Shared parts of the metrics that score one row on the CPU: checked mono signals at a metric's own rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokbench.errors import NotApplicable, Undefined, UsageError
from tokbench.resampler import resample_numpy
from tokbench.types import FloatArray

Signal = npt.NDArray[np.float64]
"""(T,) float64 sound, nominally in [-1, 1]."""

RESAMPLER = "sinc-hann-6-0.99, float64"


def mono_pair(
    metric: str,
    reference: FloatArray,
    reconstruction: FloatArray,
    sample_rate: int | None,
    target: int | None = None,
    at_least: int = 1,
) -> tuple[Signal, Signal, int]:
    """Return one row as two mono float64 signals and their rate: that of the row, or `target` after resampling.

    Args:
        metric: Named in errors.
        reference: (C, T) float32 in [-1, 1].
        reconstruction: Same shape.
        sample_rate: Hz of both.
        target: Hz to bring both to; None keeps their rate.
        at_least: Lowest rate the metric is meant for.

    Raises:
        NotApplicable: The rate is below `at_least`: what is above half of it was never there to judge.
        UsageError: Shapes differ or are not (C, T), or the rate is missing.
    """
    if reference.ndim != 2 or reference.shape != reconstruction.shape:
        raise UsageError(
            f"{metric} needs reference and reconstruction of one shape (C, T); got {reference.shape} and "
            f"{reconstruction.shape}: cut both to the length of the reference first"
        )
    if not sample_rate or sample_rate < 0:
        raise UsageError(f"{metric} needs the sample rate in Hz; got {sample_rate!r}: set Sample.sample_rate")
    if sample_rate < at_least:
        raise NotApplicable(f"{metric} needs sound of {at_least} Hz or more; this suite's is {sample_rate} Hz")
    x, y = (signal.astype(np.float64).mean(axis=0) for signal in (reference, reconstruction))
    if target is None or target == sample_rate:
        return x, y, sample_rate
    return resample_numpy(x, sample_rate, target), resample_numpy(y, sample_rate, target), target


def refuse_unheard(metric: str, reference: Signal, reconstruction: Signal, rate: int, shortest: float) -> None:
    """Raise Undefined for rows of less than `shortest` seconds, and where a side is digital silence."""
    if reference.size < shortest * rate:
        raise Undefined(f"{metric}: shorter than {1000 * shortest:g} ms")
    for name, signal in (("reference", reference), ("reconstruction", reconstruction)):
        if not signal.any():
            raise Undefined(f"{metric}: the {name} is digital silence")
