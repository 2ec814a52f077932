"""The statistics under the gate, held to their promises by simulation and against scipy."""

from __future__ import annotations

import numpy as np
import pytest

from tokbench.paired import holm, mean_difference

LEVEL = 0.025
TRIALS = 1000


def _gate_fires(p: np.ndarray, columns: int) -> float:
    """Return the share of trials in which any of `columns` neighbouring tests is rejected after Holm's correction."""
    trials = p.reshape(-1, columns)
    return float(np.mean([min(holm(list(trial))) <= LEVEL for trial in trials]))


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "skewed"])
def test_with_no_true_difference_the_gate_fires_in_at_most_five_percent_of_trials(noise: str) -> None:
    rng = np.random.default_rng(11)
    size = (200, TRIALS * 3)
    draws = {
        "normal": rng.normal(0, 0.6, size), "heavy tails": rng.standard_t(4, size), "skewed": rng.exponential(1, size) - 1
    }[noise]  # fmt: skip
    fired = _gate_fires(mean_difference(draws, below=-1e-6, resamples=1999).p_below, 3)
    assert 0 < fired <= 0.05


def test_with_a_fifth_of_a_decibel_over_200_images_it_fires_in_at_least_95_percent_of_trials() -> None:
    rng = np.random.default_rng(12)
    drop = rng.normal(-0.2, 0.6, (200, TRIALS))
    null = rng.normal(0, 0.01, (200, TRIALS * 2))
    table = np.stack([drop, null[:, :TRIALS], null[:, TRIALS:]], axis=2).reshape(200, TRIALS * 3)
    assert _gate_fires(mean_difference(table, below=-1e-6, resamples=1999).p_below, 3) >= 0.95


def test_a_drop_inside_the_tolerance_does_not_fire() -> None:
    rng = np.random.default_rng(13)
    found = mean_difference(rng.normal(-0.2, 0.6, (200, TRIALS)), below=-0.3, resamples=1999)
    assert (found.p_below <= LEVEL).mean() <= 0.01


def test_intervals_cover_and_clips_of_one_video_are_no_independent_samples() -> None:
    rng = np.random.default_rng(14)
    shared = np.repeat(rng.normal(0, 1, (30, TRIALS)), 5, axis=0)
    values = shared + rng.normal(0, 0.3, shared.shape)
    groups = [f"video {i // 5}" for i in range(150)]
    grouped = mean_difference(values, groups=groups, resamples=1999)
    naive = mean_difference(values, resamples=1999)
    assert 0.92 <= ((grouped.low <= 0) & (grouped.high >= 0)).mean() <= 0.98
    assert ((naive.low <= 0) & (naive.high >= 0)).mean() < 0.75


def test_the_interval_is_close_to_students_where_that_is_right() -> None:
    from scipy import stats

    values = np.random.default_rng(15).normal(0.1, 1, 100)
    found = mean_difference(values[:, None])
    low, high = stats.t.interval(0.95, 99, loc=values.mean(), scale=stats.sem(values))
    assert found.mean[0] == pytest.approx(values.mean())
    assert (found.low[0], found.high[0]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_degenerate_columns() -> None:
    table = np.array([[0.3, 0.0, np.nan, 0.5], [0.3, 0.0, np.nan, np.nan], [0.3, 0.0, np.nan, np.nan]])
    found = mean_difference(table, above=0.2)
    assert (found.low[0], found.high[0], found.p_above[0]) == (0.3, 0.3, 0.0)
    assert (found.low[1], found.high[1], found.p_above[1]) == (0.0, 0.0, 1.0)
    assert np.isnan(found.mean[2])
    assert found.n.tolist() == [3, 3, 0, 1]
    assert found.p_above[2:].tolist() == [1.0, 1.0]  # nothing, and one sample, show nothing
    assert np.isnan(found.low[3])


def test_the_result_is_a_function_of_its_arguments() -> None:
    values = np.random.default_rng(16).normal(0, 1, (50, 2))
    a, b = mean_difference(values), mean_difference(values)
    assert np.array_equal(a.low, b.low)
    assert not np.array_equal(a.low, mean_difference(values, seed=1).low)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
