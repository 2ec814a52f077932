"""Pools of feature vectors: the rows of a side whose keys hash lowest, the same ones for any order, batch or split."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokbench.types import State

from ._exact import add_rows


def add_pool(state: State, side: str, keys: Sequence[str], rows: Tensor, size: int) -> State:
    """Return `state` with (B, d) rows added to a side, of which the `size` lowest stay."""
    return smallest(add_rows(state, side, keys, rows), side, size)


def smallest(state: State, side: str, size: int) -> State:
    """Return the state with the `size` rows of a side whose names are smallest."""
    names = sorted(key for key in state if key.startswith(f"{side}/row/"))
    dropped = set(names[size:])
    return {key: value for key, value in state.items() if key not in dropped} if dropped else state


def pool_rows(state: State, side: str) -> list[Tensor]:
    """Return the rows of a side in the order of their names."""
    return [state[key] for key in sorted(state) if key.startswith(f"{side}/row/")]
