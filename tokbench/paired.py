"""Paired statistics on rows of two results: bootstrap-t intervals of mean differences, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 4999
_CELLS = 4_000_000
"""Weights held at once: bounds the memory of a bootstrap over any number of rows."""


@dataclass(frozen=True)
class Difference:
    """Mean differences of C columns over the same rows.

    Attributes:
        mean: (C,) mean difference; NaN where no row has a value.
        low: (C,) lower end of the two-sided 95 % interval of the mean; NaN below two groups.
        high: (C,) upper end.
        n: (C,) rows that have a value in both results.
        p_above: (C,) p-value of "the mean is at most `above`".
        p_below: (C,) p-value of "the mean is at least `below`".
    """

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]
    p_above: Floats
    p_below: Floats


def mean_difference(
    differences: Floats,
    *,
    groups: Sequence[str] | None = None,
    above: Floats | float = 0.0,
    below: Floats | float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Bootstrap the means of (N, C) paired differences; NaN marks a pair without a value.

    Whole groups are drawn (the clips of one video are no independent samples), the same ones for every column. The
    interval is the bootstrap-t (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 12): unlike the percentile
    interval it keeps its level on small sets. Where every difference is the same the interval is that value.

    Args:
        differences: (N, C).
        groups: N names; None: every row by itself.
        above: Bound(s) of the hypothesis of `p_above`, in the columns' units.
        below: Bound(s) of the hypothesis of `p_below`.
        resamples: Number of bootstrap samples; the smallest p-value is 1 / (resamples + 1).
        seed: Of the drawing; the result is a function of the arguments alone.
    """
    valid = ~np.isnan(differences)
    shift = np.nan_to_num(_masked_mean(differences, valid))
    values = np.where(valid, differences - shift, 0.0)  # centred first: sums of squares keep their digits
    if groups is not None and len(set(groups)) < len(groups):
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        total, count = _by_group(values, member), _by_group(valid.astype(np.float64), member)
    else:
        total, count = values, valid.astype(np.float64)
    mean, error = _mean_and_error(np.ones((1, len(total))), total, count)
    mean, error = mean[0], error[0]
    flat = ~(error > 1e-9 * (np.abs(shift + mean) + 1e-300))
    statistics = _student(total, count, mean, resamples, seed)
    spread = (count > 0).sum(axis=0) > 1  # one group says nothing of the spread: nothing is shown by it
    return _judged(shift + mean, error, flat, spread, valid.sum(axis=0), statistics, above, below)


def _judged(
    centre: Floats,
    error: Floats,
    flat: NDArray[np.bool_],
    spread: NDArray[np.bool_],
    n: NDArray[np.int64],
    statistics: Floats,
    above: Floats | float,
    below: Floats | float,
) -> Difference:
    """Turn means, their errors and (R, C) studentised deviations of resamples into intervals and p-values."""
    resamples = len(statistics)
    scale = np.where(flat, 1.0, error)
    low_t, high_t = np.quantile(statistics, [0.025, 0.975], axis=0)

    def p_value(bound: Floats | float, sign: int) -> Floats:
        observed = sign * (centre - bound) / scale
        beyond = (1 + (sign * statistics >= observed).sum(axis=0)) / (resamples + 1)
        certain = np.where(sign * (centre - bound) > 0, 0.0, 1.0)
        return np.where(spread, np.where(flat, certain, beyond), 1.0)

    return Difference(
        mean=np.where(n > 0, centre, np.nan),
        low=np.where(spread, np.where(flat, centre, centre - high_t * scale), np.nan),
        high=np.where(spread, np.where(flat, centre, centre - low_t * scale), np.nan),
        n=n.astype(np.int64),
        p_above=p_value(above, 1),
        p_below=p_value(below, -1),
    )


def ratio_difference(
    tables: Sequence[Floats],
    *,
    groups: Sequence[str],
    above: float = 0.0,
    below: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Bootstrap the difference of a ratio of two sums over the same rows, or of a mean of such ratios.

    As `mean_difference`: whole groups are drawn, the interval is the bootstrap-t, the error in each resample by
    linearisation. A resample in which a sum below is zero is left out.

    Args:
        tables: For each ratio (N, 4): above and below of the base, above and below of the candidate; a row with a NaN counts
            on neither side.
        groups: N names.
        above: Bound of the hypothesis of `p_above`.
        below: Bound of the hypothesis of `p_below`.
        resamples: Number of bootstrap samples.
        seed: Of the drawing.

    Returns:
        One column; its mean is NaN where a sum below is zero.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    whole = [np.asarray(~np.isnan(table).any(axis=1)) for table in tables]
    parts = [_by_group(np.where(ok[:, None], table, 0.0), member) for table, ok in zip(tables, whole, strict=True)]
    total = np.concatenate(parts, axis=1)
    size = len(total)
    n = np.array([int(np.any(whole, axis=0).sum())], np.int64)
    centre, error = _ratios(np.ones((1, size)), total)
    if not np.isfinite(centre[0]):
        nothing = np.full(1, np.nan)
        return Difference(nothing, nothing, nothing, n, np.ones(1), np.ones(1))
    rng = np.random.default_rng(seed)
    found = []
    step = max(1, _CELLS // max(size, total.shape[1] ** 2))
    for start in range(0, resamples, step):
        weights = rng.multinomial(size, np.full(size, 1 / size), size=min(step, resamples - start)).astype(np.float64)
        drawn, spread = _ratios(weights, total)
        gap = drawn - centre[0]
        student = np.where(spread > 1e-12 * np.abs(gap), gap / np.maximum(spread, 1e-300), np.sign(gap) * 1e12)
        found.append(student[np.isfinite(drawn)])
    statistics = np.concatenate(found)[:, None] if found else np.zeros((1, 1))
    groups_with = sum(int((part[:, [1, 3]] > 0).all(axis=1).sum()) for part in parts)
    level = np.abs(total[:, 0::4].sum(axis=0) / total[:, 1::4].sum(axis=0)).mean()
    flat = np.asarray(error <= 1e-9 * (np.abs(centre) + level))
    return _judged(centre, error, flat, np.array([groups_with > 1]), n, statistics, above, below)


def _ratios(weights: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Return the mean difference of ratios for each of (R, G) weightings, and its error by linearisation: both (R,).

    `total` is (G, 4K): above and below of the base, above and below of the candidate, K times. NaN where a sum below is zero.
    """
    sums = weights @ total
    a, b, c, d = (sums[:, index::4] for index in range(4))
    count = a.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        base, candidate = a / b, c / d
        value = (candidate - base).mean(axis=1)
        slopes = np.empty_like(sums)
        slopes[:, 0::4], slopes[:, 1::4] = -1 / (count * b), base / (count * b)
        slopes[:, 2::4], slopes[:, 3::4] = 1 / (count * d), -candidate / (count * d)
    size = weights.sum(axis=1)
    products = (weights @ (total[:, :, None] * total[:, None, :]).reshape(len(total), -1)).reshape(
        len(weights), *2 * [total.shape[1]]
    )
    square = np.einsum("rj,rjk,rk->r", slopes, products, slopes)
    value = np.where((b == 0).any(axis=1) | (d == 0).any(axis=1), np.nan, value)
    return value, np.sqrt(np.maximum(square, 0.0) * size / np.maximum(size - 1, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests, in the order given (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def _masked_mean(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    count = valid.sum(axis=0)
    total = np.where(valid, values, 0.0).sum(axis=0)
    found: Floats = np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
    return found


def _by_group(values: Floats, member: NDArray[np.intp]) -> Floats:
    out = np.zeros((int(member.max()) + 1, values.shape[1]))
    np.add.at(out, member, values)
    return out


def _mean_and_error(weights: Floats, total: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Return the means and their standard errors for each of (R, G) weightings of G groups: both (R, C).

    The mean is a ratio (sum over groups of totals, over that of counts), its error by linearisation; with one row a group
    it is the ordinary standard error.
    """
    size = weights.sum(axis=1, keepdims=True)
    number = np.maximum(weights @ count, 1e-300)
    mean = (weights @ total) / number
    square = weights @ (total * total) - 2 * mean * (weights @ (total * count)) + mean**2 * (weights @ (count * count))
    error = np.sqrt(np.maximum(square, 0.0) * size / np.maximum(size - 1, 1)) / number
    return mean, error


def _student(total: Floats, count: Floats, mean: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, C) studentised deviations of resampled means from the mean."""
    rng = np.random.default_rng(seed)
    size = len(total)
    out = np.zeros((resamples, total.shape[1]))
    step = max(1, _CELLS // max(1, size))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        resampled, error = _mean_and_error(weights, total, count)
        gap = resampled - mean
        # A resample without spread has no finite t; it counts as far out on its side, never as agreement.
        finite = gap / np.maximum(error, 1e-300)
        out[start : start + rows] = np.where(error > 1e-12 * np.abs(gap), finite, np.sign(gap) * 1e12)
    return out


def paired_ratio_t(base: Floats, candidate: Floats, groups: Sequence[str]) -> tuple[float, float]:
    """Return the difference of two ratios of sums, or means of such, and the two-sided p-value of "it is zero".

    A t test on whole groups of the linearised ratios.

    Args:
        base: (N, 2K): above and below, K times; no NaN.
        candidate: The same, over the same rows.
        groups: N names.
    """
    from scipy.special import stdtr

    _, member = np.unique(np.asarray(groups), return_inverse=True)
    both = np.stack([base[:, 0::2], base[:, 1::2], candidate[:, 0::2], candidate[:, 1::2]], axis=2)
    total = _by_group(both.reshape(len(base), -1), member)
    value, error = (float(found[0]) for found in _ratios(np.ones((1, len(total))), total))
    if len(total) < 2 or not np.isfinite(value):
        return value, 1.0
    if error <= 1e-9 * max(abs(value), 1e-3):
        return value, 0.0 if abs(value) > 1e-12 else 1.0
    return value, 2.0 * float(stdtr(len(total) - 1, -abs(value) / error))


def paired_t(differences: Floats, groups: Sequence[str]) -> tuple[float, float]:
    """Return the mean of (N,) paired differences and the two-sided p-value of "it is zero" (t test on whole groups)."""
    from scipy.special import stdtr

    _, member = np.unique(np.asarray(groups), return_inverse=True)
    total = _by_group((differences - differences.mean())[:, None], member)
    count = _by_group(np.ones((len(differences), 1)), member)
    _, error = _mean_and_error(np.ones((1, len(total))), total, count)
    mean, spread = float(differences.mean()), float(error[0, 0])
    if len(total) < 2:
        return mean, 1.0
    if spread <= 1e-12 * abs(mean):
        return mean, 0.0 if mean else 1.0
    return mean, 2.0 * float(stdtr(len(total) - 1, -abs(mean) / spread))
