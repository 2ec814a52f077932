"""Shared parts of the metrics that score one row on the CPU: checked mono signals at a metric's own rate."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokbench.errors import MissingExtra, NotApplicable, UsageError
from tokbench.resampler import resample_numpy
from tokbench.types import FloatArray
from tokbench.weights import file_digest

from ._backbones import ABSENT

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


@lru_cache
def carried_digest(package: str, file: str) -> str:
    """Return the sha256 of the model file a package loads by itself, or `absent`; the package is not imported."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        return ABSENT
    folders = (found.submodule_search_locations or ()) if found else ()
    path = next((Path(folder) / file for folder in folders), None)
    return file_digest(path) if path and path.is_file() else ABSENT


def missing(metric: str, package: str, extra: str = "audio") -> MissingExtra:
    """Return the error for a package that is not installed, with the command that installs it."""
    return MissingExtra(f"{metric} needs the package {package}", f"pip install 'tokbench[{extra}]'")
