"""Checks of options that several metrics take."""

from __future__ import annotations

import math

from tokbench.errors import UsageError


def require_positive_integer(metric: str, name: str, value: object) -> None:
    """Raise UsageError unless the option is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        good = False
    else:
        good = value == int(value) and value >= 1
    if not good:
        raise UsageError(f"{metric}: {name} is a positive integer, got {value!r}")
