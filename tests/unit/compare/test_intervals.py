"""Intervals of numbers of the whole set: rFID on subsets of the features that shards keep, and ratios of sums."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokbench.compare import compare, find
from tokbench.gate import Gate, Limit
from tokbench.metrics._exact import add_rows
from tokbench.metrics.frechet import Rfid, distance, subset_distances
from tokbench.paired import ratio_difference
from tokbench.session import Request, run
from tokbench.subsets import SubsetDifference, subset_differences
from tokbench.types import Subsets

HERE = Path(__file__).parent
FID, WORDS = f"{HERE / 'subset_fid.py'}:SubsetFid", f"{HERE / 'subset_fid.py'}:WordCount"


def _features(seed: int, count: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize(("count", "width"), [(40, 8), (30, 64)])
def test_the_distance_of_a_subset_is_what_the_metric_gives_of_it(count: int, width: int) -> None:
    x = _features(0, count, width)
    y = 0.9 * x + 0.3 * _features(1, count, width) + 0.1
    subsets = np.stack([np.random.default_rng(i).permutation(count)[: count // 2] for i in range(4)])
    found = subset_distances(x, y, subsets)
    for subset, value in zip(subsets, found, strict=True):
        keys = [str(i) for i in subset]
        state = add_rows({}, "reference", keys, torch.from_numpy(x[subset]))
        state = add_rows(state, "reconstruction", keys, torch.from_numpy(y[subset]))
        assert value == pytest.approx(distance(state), rel=1e-6)
    assert isinstance(Rfid(), Subsets)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Return a folder of 48 small pictures."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(4)
    for index in range(48):
        y, x = np.mgrid[0:32, 0:32]
        base = (
            120 + 90 * np.sin(x / (2 + index % 5) + index)[..., None] * rng.random(3) + rng.normal(0, 20, (32, 32, 3))
        )
        Image.fromarray(np.clip(base + y[..., None], 0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def stores(many: Path, suite_file: Path, tmp_path_factory) -> Path:
    """Return a store of three operating points with their shards."""
    store = tmp_path_factory.mktemp("store")
    names = ("jpeg?quality=5", "jpeg?quality=50", "jpeg?quality=51")
    run(Request((str(suite_file),), names, (f"folder:{many}",), ("psnr", FID, WORDS), store, device="cpu", shard_size=16,
                decode_workers=0))  # fmt: skip
    return store


def _column(store: Path, base: str, candidate: str, name: str, gate: Gate | None = None):
    (pair,) = compare(find(f"{store}:{base}"), find(f"{store}:{candidate}"), gate or Gate(), resamples=999).pairs
    return next(column for column in pair.columns if column.column == name), pair


def test_rfid_gets_an_interval_from_the_features_of_all_shards_and_is_judged(stores: Path) -> None:
    column, pair = _column(stores, "jpeg?quality=50", "jpeg?quality=5", "subset_fid")
    assert (column.verdict, column.judged, column.n, pair.verdict) == ("worse", True, 48, "worse")
    assert column.ci95 is not None
    assert 0 < column.ci95[0] < column.ci95[1]
    assert column.difference == pytest.approx(column.candidate - column.base)
    assert "the mean over 100 subsets of 24 of 48 samples, the same on both sides" in column.note
    back, _ = _column(stores, "jpeg?quality=5", "jpeg?quality=50", "subset_fid")
    assert back.verdict == "better"
    assert back.ci95 == pytest.approx((-column.ci95[1], -column.ci95[0]))
    same, _ = _column(stores, "jpeg?quality=50", "jpeg?quality=50", "subset_fid")
    assert (same.verdict, same.ci95) == ("same", (0.0, 0.0))
    loose, pair = _column(
        stores, "jpeg?quality=50", "jpeg?quality=5", "subset_fid", Gate({"subset_fid": Limit(2 * column.ci95[1])})
    )
    assert (loose.verdict, pair.verdict) == ("same", "fine")


def test_without_features_it_is_said_why_and_the_plain_limit_decides(
    many: Path, suite_file: Path, tmp_path: Path
) -> None:
    metric = f"{FID}?grid=1"  # three features: shards of 48 pictures keep their sums alone
    names = ("jpeg?quality=5", "jpeg?quality=50")
    run(Request((str(suite_file),), names, (f"folder:{many}",), (metric,), tmp_path, device="cpu", decode_workers=0))
    column, pair = _column(tmp_path, *reversed(names), "subset_fid")
    assert column.note == "no interval: shards of this size keep sums only; --shard-size 1000 keeps features"
    assert (column.judged, column.ci95, pair.verdict) == (False, None, "fine")
    column, pair = _column(tmp_path, *reversed(names), "subset_fid", Gate({"subset_fid": Limit(0.0)}))
    assert (column.verdict, pair.verdict) == ("worse", "worse")
    for path in tmp_path.glob("*/*/*/shards/*/states.safetensors"):
        path.unlink()
    column, _ = _column(tmp_path, *reversed(names), "subset_fid")
    assert column.note == "one number of the set, no interval"


def test_a_ratio_is_compared_row_by_row_and_names_its_worst_samples(stores: Path) -> None:
    column, pair = _column(stores, "jpeg?quality=50", "jpeg?quality=5", "accuracy")
    assert (column.verdict, column.judged, column.n) == ("worse", True, 48)
    assert column.difference == pytest.approx(column.candidate - column.base)
    assert column.ci95 is not None
    assert column.ci95[0] < column.difference < column.ci95[1] < 0
    rows = [row for row in pair.worst if row.column == "accuracy"]
    assert len(rows) == 5
    assert all(0 <= row.candidate < row.base <= 1 for row in rows)
    both, _ = _column(stores, "jpeg?quality=50", "jpeg?quality=5", "both")
    assert both.ci95 == pytest.approx(column.ci95)
    same, _ = _column(stores, "jpeg?quality=50", "jpeg?quality=50", "accuracy")
    assert (same.verdict, same.ci95) == ("same", (0.0, 0.0))


def test_the_difference_of_ratios_is_that_of_sums_over_rows_both_sides_have() -> None:
    table = np.array([[1, 2, 2, 2], [3, 4, 1, 4], [5, 10, 5, 10], [np.nan, 7, 3, 7]], np.float64)
    found = ratio_difference([table], groups=["a", "b", "c", "d"], resamples=99)
    assert found.mean[0] == pytest.approx(8 / 16 - 9 / 16)
    assert found.n[0] == 3
    empty = ratio_difference([np.array([[1.0, 0, 1, 0], [2, 0, 1, 0]])], groups=["a", "b"], resamples=99)
    assert math.isnan(empty.mean[0])
    one = ratio_difference([table[:1]], groups=["a"], resamples=99)
    assert math.isnan(one.low[0])
    assert one.p_below[0] == 1


@pytest.mark.slow
def test_with_no_true_difference_neither_interval_fires_in_more_than_its_level(monkeypatch) -> None:
    """Two equally good candidates: one-sided false alarms stay near 2.5 % (at most 10 of 200, expected 5)."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        words = rng.integers(2, 30, 80)
        share = rng.beta(8, 2, 80)
        base, candidate = (rng.binomial(words, share) for _ in range(2))
        table = np.stack([base, words, candidate, words], 1).astype(np.float64)
        found = ratio_difference([table], groups=[str(i) for i in range(80)], resamples=499)
        alarms += int(found.p_below[0] <= 0.025)
    assert alarms <= 10
    alarms = 0
    for _ in range(200):
        x = rng.normal(size=(100, 12)) * np.linspace(0.2, 2, 12)
        sides = [(0.9 * x + 0.3 * rng.normal(size=x.shape)).astype(np.float32) for _ in range(2)]
        subsets = np.stack([rng.permutation(100)[:50] for _ in range(50)])
        gaps = np.subtract(*(subset_distances(x.astype(np.float32), side, subsets) for side in sides))
        found = SubsetDifference(float(gaps.mean()), float(gaps.std(ddof=1)), 100, 50, 50)
        alarms += int(found.p_beyond(0.0, 1) <= 0.025)
    assert alarms <= 10


def test_only_columns_that_are_asked_for_are_computed(stores: Path) -> None:
    places = [entry.place for entry in find(str(stores))][:2]
    assert subset_differences(*places, []) == {}
    assert subset_differences(*places, ["psnr"]) == {}
    assert isinstance(subset_differences(*places, ["subset_fid"])["subset_fid"], SubsetDifference)
