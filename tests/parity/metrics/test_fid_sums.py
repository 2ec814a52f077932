"""The sums behind FID: the same bits for any batch, order and split, and the covariance that numpy has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from tokbench.errors import ContractError
from tokbench.metrics._exact import LIMIT, SHIFTS, add_rows, bounded, count, kept_rows, moments, on_grid
from tokbench.metrics.frechet import distance
from tokbench.types import State, merge_states

N, D = 90, 24
KEYS = [f"picture-{index}" for index in range(N)]


def rows(seed: int, n: int = N, d: int = D) -> Tensor:
    rng = np.random.Generator(np.random.PCG64(seed))
    scale = np.linspace(0.2, 2.0, d)
    return torch.from_numpy((rng.gamma(1.5, 0.4, (n, d)) * scale + 0.01 * seed).astype(np.float32))


def gathered(x: Tensor, y: Tensor, parts: list[list[int]], batch: int) -> State:
    """Add rows in batches within each part, bound after every batch, merge the parts one by one."""
    whole: State = {}
    for part in parts:
        state: State = {}
        for start in range(0, len(part), batch):
            some = part[start : start + batch]
            state = add_rows(state, "reference", [KEYS[i] for i in some], x[some])
            state = add_rows(state, "reconstruction", [KEYS[i] for i in some], y[some])
            state = bounded(bounded(state, "reference"), "reconstruction")
        whole = merge_states(whole, state)
    return whole


@pytest.mark.parametrize("batch", [1, 3, 8, 90])
@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled"])
@pytest.mark.parametrize("cuts", [[90], [13, 90], [10, 20, 30, 40, 50, 60, 70, 80, 90], [30, 89, 90]])
def test_any_batch_order_and_split_gives_the_same_bits(batch: int, order: str, cuts: list[int]) -> None:
    x, y = rows(1), rows(2)
    x[7] *= 300.0  # a row that lies on a coarser grid than the others
    expected = gathered(x, y, [list(range(N))], N)
    sequence = list(range(N)) if order != "reversed" else list(range(N))[::-1]
    if order == "shuffled":
        sequence = np.random.Generator(np.random.PCG64(5)).permutation(N).tolist()
    parts = [sequence[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    state = gathered(x, y, parts, batch)
    for side in ("reference", "reconstruction"):
        mine, theirs = moments(state, side), moments(expected, side)
        assert mine is not None
        assert theirs is not None
        assert mine.count == theirs.count == N
        assert np.array_equal(mine.mean, theirs.mean)
        assert np.array_equal(mine.covariance, theirs.covariance)
    assert distance(state) == distance(expected)


def test_moments_are_those_of_numpy() -> None:
    x = rows(1, 400)
    state = bounded(add_rows({}, "reference", [str(i) for i in range(400)], x), "reference")
    assert kept_rows(state, "reference") is None  # they were folded
    found = moments(state, "reference")
    assert found is not None
    grid = on_grid(x).numpy()
    np.testing.assert_allclose(found.mean, grid.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(grid, rowvar=False), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.covariance, found.covariance.T)


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_the_grid_moves_fid_by_less_than_a_millionth(shift: float) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    base = rng.gamma(1.0, 0.45, (700, 64)).astype(np.float32)
    x, y = base, (base + shift + 0.2 * rng.standard_normal(base.shape)).astype(np.float32)

    def fid(a: np.ndarray, b: np.ndarray) -> float:
        s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = linalg.sqrtm(s @ t)
        gap = a.mean(0) - b.mean(0)
        return float(gap @ gap + np.trace(s + t - 2 * np.real(root)))

    exact = fid(x.astype(np.float64), y.astype(np.float64))
    keys = [str(i) for i in range(700)]
    state = add_rows(add_rows({}, "reference", keys, torch.from_numpy(x)), "reconstruction", keys, torch.from_numpy(y))
    found = distance(state)
    assert found is not None
    assert exact > 0.05
    assert abs(found - exact) < 1e-6 * exact


def test_small_sets_have_the_distance_of_the_whole_covariance() -> None:
    x, y = rows(1, 20, 64), rows(2, 22, 64)
    few = add_rows(add_rows({}, "reference", KEYS[:20], x), "reconstruction", KEYS[:22], y)
    found = distance(few)
    s, t = np.cov(x.numpy(), rowvar=False, dtype=np.float64), np.cov(y.numpy(), rowvar=False, dtype=np.float64)
    gap = x.double().mean(0) - y.double().mean(0)
    # tr (st)^1/2 from the singular values of the centred data, by another road than either of the code's.
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    cross = torch.linalg.svdvals(a @ b.T).sum() / np.sqrt(19 * 21)
    expected = float(gap @ gap) + np.trace(s) + np.trace(t) - 2 * float(cross)
    assert found == pytest.approx(expected, rel=1e-5)


def test_large_sets_do_not_grow() -> None:
    state: State = {}
    for start in range(0, 400, 8):
        state = add_rows(state, "reference", [str(start + i) for i in range(8)], rows(start, 8))
        state = bounded(state, "reference")
        assert sum(tensor.numel() for tensor in state.values()) <= 3 * D * D
    assert count(state, "reference") == 400


def test_no_product_of_ten_million_rows_can_overflow() -> None:
    assert LIMIT**2 * 10**7 < 2**63
    assert LIMIT**2 * 4096 < 2**53
    assert list(SHIFTS) == sorted(SHIFTS, reverse=True)


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(ContractError, match="twice"):
        add_rows(add_rows({}, "reference", ["a"], rows(1, 1)), "reference", ["a"], rows(1, 1))
    with pytest.raises(ContractError, match="not finite"):
        add_rows({}, "reference", ["a"], torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ContractError, match="beyond"):
        bounded(add_rows({}, "reference", ["a", "b", "c"], torch.full((3, 2), 1e9)), "reference")


def test_fewer_than_two_samples_have_no_distance() -> None:
    one = add_rows(add_rows({}, "reference", ["a"], rows(1, 1)), "reconstruction", ["a"], rows(2, 1))
    assert distance(one) is None
    assert distance({}) is None
