"""Bjøntegaard delta rate: how many per cent more bits one curve of operating points needs for the quality of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 3
"""Operating points a curve needs."""

Curve = Sequence[tuple[float, float]]
"""(rate, quality) of each operating point; more quality is better."""


def bd_rate(anchor: Curve, other: Curve) -> float | None:
    """Return the mean difference of rate at equal quality, in per cent: negative means `other` needs fewer bits.

    The logarithm of the rate is interpolated over quality by a monotone cubic (PCHIP), as in the reference software of VVC,
    and averaged over the qualities both curves reach (Bjøntegaard, VCEG-M33, 2001). None where a curve has fewer than three
    points, its quality does not rise with its rate, or the curves share no quality.
    """
    from scipy.interpolate import PchipInterpolator

    sides = []
    for curve in (anchor, other):
        points = sorted(set(curve))
        rates, qualities = np.array(points).reshape(-1, 2).T
        if len(points) < FEWEST or (rates <= 0).any() or (np.diff(qualities) <= 0).any():
            return None
        sides.append((qualities, PchipInterpolator(qualities, np.log(rates))))
    low = max(float(qualities[0]) for qualities, _ in sides)
    high = min(float(qualities[-1]) for qualities, _ in sides)
    if low >= high:
        return None
    means = [float(curve.integrate(low, high)) / (high - low) for _, curve in sides]
    return 100.0 * float(np.expm1(means[1] - means[0]))
