"""Differences of numbers of the whole set (rFID) between two results, on random subsets of the features their shards keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokbench.errors import TokbenchError
from tokbench.registry import build_metric

if TYPE_CHECKING:
    from tokbench.types import Subsets

Floats = NDArray[np.float64]

FEWEST = 20
"""Samples below which a number of the whole set gets no interval."""

_POOL = 2000
_LARGEST = 500
_DRAWS = 100


@dataclass(frozen=True)
class SubsetDifference:
    """The mean difference, candidate minus base, of a number over the same random subsets of samples on both sides.

    A number like FID is biased upwards by an amount that falls with the number of samples, so it is compared at equal
    numbers only, and `mean` is a difference at `size` samples: the biases cancel as far as the two sides share them.
    The standard error is that of the delete-d jackknife (Shao and Wu, 1989): the spread over the subsets times
    √(size / (pool - size)).

    Attributes:
        pool: Samples of which features are kept on both sides and that subsets were drawn from.
        size: Samples of a subset.
        draws: Subsets.
    """

    mean: float
    error: float
    pool: int
    size: int
    draws: int

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the two-sided 95 % interval of the mean."""
        return (self.mean - 1.96 * self.error, self.mean + 1.96 * self.error)

    def p_beyond(self, bound: float, sign: int) -> float:
        """Return the p-value of "the difference is not beyond `bound`", upwards for `sign` 1, downwards for -1."""
        from scipy.special import ndtr

        if self.error <= 1e-12 * abs(self.mean):
            return 0.0 if sign * (self.mean - bound) > 0 else 1.0
        return float(ndtr(-sign * (self.mean - bound) / self.error))


def subset_differences(base: Path, candidate: Path, columns: Iterable[str]) -> dict[str, SubsetDifference | str]:
    """Return column -> difference on subsets, or why there is none, for those columns whose metric works on subsets.

    Args:
        base: Directory of a result, with its shards.
        candidate: The same, of the other side.
        columns: Columns of the whole set.
    """
    wanted = set(columns)
    if not wanted:
        return {}
    sides = [_row_files(place) for place in (base, candidate)]
    found: dict[str, SubsetDifference | str] = {}
    for name in sorted(sides[0].keys() | sides[1].keys()):
        metric = _metric(name)
        if metric is None or metric.spec.columns[0].name not in wanted:
            continue
        column = metric.spec.columns[0].name
        try:
            found[column] = _difference(name, metric, [side.get(name, {}) for side in sides])
        except (TokbenchError, ValueError, np.linalg.LinAlgError) as error:
            found[column] = f"no interval: {error}"
    return found


def _metric(name: str) -> Subsets | None:
    from tokbench.types import Subsets

    try:
        metric = build_metric(name)
    except (TokbenchError, TypeError, ImportError, OSError):
        return None
    return metric if isinstance(metric, Subsets) else None


def _row_files(place: Path) -> dict[str, dict[str, Path]]:
    """Return metric -> tensor name without the metric -> file, for every feature row and every folded sum of a result."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[str, Path]] = {}
    for path in sorted((place / "shards").glob("*/states.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
        except (OSError, SafetensorError):
            continue
        for text in names:
            metric, _, key = text.partition("\n")
            if key.startswith(("reference/", "reconstruction/")):
                found.setdefault(metric, {})[key] = path
    return found


def _difference(name: str, metric: Subsets, sides: list[Mapping[str, Path]]) -> SubsetDifference | str:
    rows = [{side: _names(files, side) for side in ("reference", "reconstruction")} for files in sides]
    common = set.intersection(*(names for side in rows for names in side.values()))
    if len(common) < FEWEST:
        if any(key.partition("/")[2].startswith("count/") for files in sides for key in files):
            return "no interval: shards of this size keep sums only; --shard-size 1000 keeps features"
        return f"no interval: features of {len(common)} samples are kept on both sides, {FEWEST} are needed"
    pool = sorted(common)[:_POOL]
    size = min(len(pool) // 2, _LARGEST)
    rng = np.random.default_rng(0)
    subsets = np.stack([rng.permutation(len(pool))[:size] for _ in range(_DRAWS)]).astype(np.int64)
    scores = []
    for files in sides:
        pair = [_read(name, files, side, pool) for side in ("reference", "reconstruction")]
        scores.append(metric.on_subsets(pair[0], pair[1], subsets))
    gaps: Floats = scores[1] - scores[0]
    error = float(gaps.std(ddof=1)) * (size / (len(pool) - size)) ** 0.5
    return SubsetDifference(float(gaps.mean()), error, len(pool), size, _DRAWS)


def _names(files: Mapping[str, Path], side: str) -> set[str]:
    start = f"{side}/row/"
    return {key.removeprefix(start) for key in files if key.startswith(start)}


def _read(metric: str, files: Mapping[str, Path], side: str, names: list[str]) -> NDArray[np.float32]:
    """Return the feature rows of a side in the order of their names, reading each file once."""
    from safetensors import safe_open

    keys = [f"{side}/row/{name}" for name in names]
    found: dict[str, NDArray[np.float32]] = {}
    for path in sorted({files[key] for key in keys}):
        with safe_open(path, framework="numpy") as file:
            found |= {key: file.get_tensor(f"{metric}\n{key}") for key in keys if files[key] == path}
    return np.stack([found[key] for key in keys]).astype(np.float32)
