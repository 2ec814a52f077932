"""The channel rule of sound, and the resampler (`tokbench.resampler`) that brings recordings to a suite's rate."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tokbench.errors import UsageError
from tokbench.resampler import resample, resample_numpy

__all__ = ["channels", "resample", "resample_numpy"]


def channels(x: np.ndarray, rule: Literal["mono", "native"]) -> np.ndarray:
    """Apply a protocol's channel rule.

    Args:
        x: (C, T).
        rule: `mono` averages the channels; `native` keeps them.

    Returns:
        (1, T) or (C, T) in the dtype of `x`; `x` itself when nothing changes.

    Raises:
        UsageError: Unknown rule.
    """
    if rule not in ("mono", "native"):
        raise UsageError(f"unknown channel rule {rule!r}; known: mono, native")
    if rule == "native" or x.shape[0] == 1:
        return x
    mono: np.ndarray = x.mean(axis=0, keepdims=True, dtype=np.float64).astype(x.dtype)
    return mono
