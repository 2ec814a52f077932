"""Ratios of sums over rows (words read right over words) and means of them, with bootstrap intervals over files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_CHUNK = 64  # resamples drawn at a time, so that a set of a million files needs no gigabytes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums, or a mean of such ratios.

    Attributes:
        value: None where a sum below is zero.
        low: Of the 95 % percentile interval over resampled files; None where fewer than two files add to a sum below.
        high: Its other end.
        n: The sum below, of all ratios that a mean is made of.
    """

    value: float | None
    low: float | None
    high: float | None
    n: float


def ratio(rows: Mapping[str, Sequence[float | None]], groups: Sequence[str], parts: Sequence[tuple[str, str]]) -> Ratio:
    """Return the mean over `parts` of (sum of the first column) / (sum of the second).

    Rows of one file (clips of a video) are drawn together. A resample in which a part has nothing below is left out of the
    interval. Values are exactly rounded sums, so order, batches and shards cannot matter; draws are seeded.

    Args:
        rows: Column -> one value a row; None counts as nothing, above and below.
        groups: The file of each row.
        parts: (above, below) columns; one for a plain ratio.
    """
    order: dict[str, int] = {}
    for group in sorted(set(groups)):
        order[group] = len(order)
    place = np.array([order[group] for group in groups], dtype=np.int64)
    tables = [
        (_grouped(rows[above], place, len(order)), _grouped(rows[below], place, len(order))) for above, below in parts
    ]
    totals = [(math.fsum(above), math.fsum(below)) for above, below in tables]
    n = math.fsum(below for _, below in totals)
    if not totals or any(below == 0 for _, below in totals):
        return Ratio(None, None, None, n)
    value = math.fsum(above / below for above, below in totals) / len(totals)
    if any(np.count_nonzero(below) < 2 for _, below in tables):
        return Ratio(value, None, None, n)
    draws = resampled(tables)
    if not len(draws):
        return Ratio(value, None, None, n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Ratio(value, float(low), float(high), n)


def resampled(tables: Sequence[tuple[Floats, Floats]], seed: int = 0) -> Floats:
    """Return the mean ratio in up to 2,000 seeded resamples of the files; those in which a sum below is zero are left out.

    Args:
        tables: For each ratio, what each file adds above and below: two (files,) arrays.
        seed: Two calls with the same seed and number of files draw the same files.
    """
    files = len(tables[0][0])
    rng = np.random.Generator(np.random.PCG64(seed))
    stacked = np.stack([column for table in tables for column in table])
    found = []
    for start in range(0, RESAMPLES, _CHUNK):
        weights = rng.multinomial(files, np.full(files, 1 / files), size=min(_CHUNK, RESAMPLES - start))
        sums = weights.astype(np.float64) @ stacked.T
        above, below = sums[:, 0::2], sums[:, 1::2]
        whole = (below != 0).all(axis=1)
        found.append((above[whole] / below[whole]).mean(axis=1))
    return np.concatenate(found)


def _grouped(column: Sequence[float | None], place: npt.NDArray[np.int64], count: int) -> Floats:
    sums: list[list[float]] = [[] for _ in range(count)]
    for index, value in zip(place.tolist(), column, strict=True):
        if value is not None:
            sums[index].append(value)
    return np.array([math.fsum(values) for values in sums], dtype=np.float64)
