"""Sums of feature vectors that no order, batch or split can change: fixed-point rows, folded into int64 moments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokbench.errors import ContractError
from tokbench.types import State

Array = npt.NDArray[np.float64]

SHIFTS = (16, 11, 6, 1, -4)
"""A row lies on the grid of step 2^-shift of the first entry under which its largest value stays below `LIMIT` steps."""

LIMIT = 960_000
"""Steps a value may span: 10^7 products of two such values stay below 2^63, and 9,000 below 2^53."""

_BLOCK, _STRIP = 1024, 256


def row_name(key: str) -> str:
    """Return how a sample's row is called in a state: 128 bits of the sha256 of its key."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def add_rows(state: State, side: str, keys: Sequence[str], rows: Tensor) -> State:
    """Return `state` with one row a sample added to `side`; `state` itself is left as it is.

    Args:
        state: Of any metric; keys of other sides are kept.
        side: `reference` or `reconstruction`.
        keys: B sample keys, none of which `side` has seen.
        rows: (B, d) features.

    Raises:
        ContractError: A key came twice, or a feature is not finite.
    """
    rows = rows.detach().to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(rows).all()):
        raise ContractError("the feature extractor returned values that are not finite")
    new = dict(state)
    for key, row in zip(keys, rows, strict=True):
        name = f"{side}/row/{row_name(key)}"
        if name in new:
            raise ContractError(f"sample {key!r} was given to a metric of the whole set twice")
        new[name] = row.clone()
    return new


def bounded(state: State, side: str) -> State:
    """Return an equal state that holds at most d rows of `side`: more than that are folded into their moments.

    Rows take d values each and the moments d (d + 3) / 2, so small sets stay small and large ones stop growing.
    """
    names = _row_names(state, side)
    if len(names) <= (state[names[0]].numel() if names else 0):
        return state
    folded = {key: value for key, value in state.items() if not key.startswith(f"{side}/row/")}
    for key, value in _fold(torch.stack([state[name] for name in names])).items():
        name = f"{side}/{key}"
        folded[name] = folded[name] + value if name in folded else value
    return folded


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and covariance (d, d), divided by n - 1, of the rows of one side."""

    count: int
    mean: Array
    covariance: Array


def count(state: State, side: str) -> int:
    """Return how many samples `side` holds."""
    sums = sum(int(value) for key, value in state.items() if key.startswith(f"{side}/count/"))
    return sums + len(_row_names(state, side))


def kept_rows(state: State, side: str) -> Array | None:
    """Return the rows of `side`, (n, d) on their grid in the order of their names, or None where some are folded."""
    if any(key.startswith(f"{side}/count/") for key in state):
        return None
    names = _row_names(state, side)
    return on_grid(torch.stack([state[name] for name in names])).numpy() if names else None


def moments(state: State, side: str) -> Moments | None:
    """Return the moments of `side`, or None with fewer than two samples."""
    total = count(state, side)
    if total < 2:
        return None
    sums: dict[str, Tensor] = {k.removeprefix(f"{side}/"): v for k, v in state.items() if k.startswith(f"{side}/")}
    rows = [sums.pop(key) for key in sorted(sums) if key.startswith("row/")]
    if rows:
        for key, value in _fold(torch.stack(rows)).items():
            sums[key] = sums[key] + value if key in sums else value
    mean, covariance = _unscaled(sums)
    mean /= total
    for index in range(len(mean)):
        covariance[index] -= total * (mean[index] * mean)
        covariance[index] /= total - 1
    return Moments(total, mean, covariance)


def on_grid(rows: Tensor) -> Tensor:
    """Round each of the (n, d) rows to its grid, half to even; float64."""
    shifts = _shifts(rows)
    return _steps(rows, shifts) * torch.exp2(-shifts.double())[:, None]


def _shifts(rows: Tensor) -> Tensor:
    """Return each row's shift, (n,) int64: by its own values alone, so that it does not depend on its company."""
    largest = rows.detach().double().abs().amax(1)
    out = torch.full((rows.shape[0],), SHIFTS[-1])
    for shift in reversed(SHIFTS[:-1]):
        out[largest * 2.0**shift < LIMIT] = shift
    if bool((largest * 2.0 ** SHIFTS[-1] >= LIMIT).any()):
        raise ContractError(f"a feature of {float(largest.max()):g} is beyond what can be summed exactly")
    return out


def _steps(rows: Tensor, shifts: Tensor) -> Tensor:
    return torch.round(rows.double() * torch.exp2(shifts.double())[:, None])


def _fold(rows: Tensor) -> State:
    """Return count, sum and upper triangle of the products of (n, d) rows, in steps, int64, a set a shift.

    The triangle is made in strips of rows: the whole square, its indices and its integers would be ten times its size.
    """
    out: State = {}
    shifts = _shifts(rows)
    size = rows.shape[1]
    for shift in sorted(set(shifts.tolist())):
        mine = rows[shifts == shift]
        total = torch.zeros(size, dtype=torch.int64)
        products = torch.zeros(size * (size + 1) // 2, dtype=torch.int64)
        for part in torch.split(mine, _BLOCK):
            # Every partial sum is an integer below 2^53: float64 adds them without rounding in whatever order.
            block = _steps(part, torch.full((len(part),), shift))
            total += block.sum(0).to(torch.int64)
            for first in range(0, size, _STRIP):
                strip = (block[:, first : first + _STRIP].T @ block[:, first:]).to(torch.int64)
                for row, values in enumerate(strip):
                    products[_row(first + row, size)] += values[row:]
        out[f"count/{shift}"] = torch.tensor(len(mine))
        out[f"sum/{shift}"] = total
        out[f"products/{shift}"] = products
    return out


def _row(index: int, size: int) -> slice:
    """Return where row `index` of an upper triangle, from its diagonal on, lies in the flat triangle."""
    start = index * size - index * (index - 1) // 2
    return slice(start, start + size - index)


def _unscaled(sums: Mapping[str, Tensor]) -> tuple[Array, Array]:
    """Return the sum (d,) and the sum of products (d, d) over all shifts, in the unit of the features."""
    shifts = sorted(int(key.partition("/")[2]) for key in sums if key.startswith("count/"))
    size = sums[f"sum/{shifts[0]}"].numel()
    total, second = np.zeros(size), np.zeros((size, size))
    for shift in shifts:
        total += sums[f"sum/{shift}"].numpy() * math.ldexp(1.0, -shift)
        products = sums[f"products/{shift}"].numpy()
        for index in range(size):
            second[index, index:] += products[_row(index, size)] * math.ldexp(1.0, -2 * shift)
    for index in range(size):
        second[index + 1 :, index] = second[index, index + 1 :]
    return total, second


def _row_names(state: State, side: str) -> list[str]:
    return sorted(key for key in state if key.startswith(f"{side}/row/"))
