"""Inception Score, KID, precision and recall beside torch-fidelity's functions on the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.metrics import features
from tokbench.metrics._exact import row_name
from tokbench.metrics.distribution import SPLITS, InceptionScore, Kid, PrecisionRecall
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample, State, merge_states

N = 60
KEYS = [f"k/{index}" for index in range(N)]


class Stub:
    """Stands in for Inception: 30 fixed random projections of the picture, and 12 logits."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(4)
        self.pool = torch.randn(3 * 64, 30, generator=g) * 0.3
        self.head = torch.randn(30, 12, generator=g) * 0.5

    def __call__(self, x: Tensor) -> features.Features:
        rows = torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)
        # One row at a time: a stand-in must be as exact as what it stands for.
        pool = torch.cat([row[None] @ self.pool for row in rows])
        return features.Features(pool, torch.cat([row[None] @ self.head for row in pool]))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    stub = Stub()
    monkeypatch.setattr(features, "load", lambda *_: stub)
    monkeypatch.setitem(features.FRONTS, "tf1", lambda images: images)
    (tmp_path / "w.pth").write_bytes(b"")
    return str(tmp_path / "w.pth")


def pictures() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(N, 3, 4, 4, generator=g), size=32, mode="bilinear")
    x = (x * 255).round() / 255
    return x, x * 0.8 + 0.1 + 0.1 * torch.randn(x.shape, generator=g)


def batch(x: Tensor, raw: Tensor, rows: list[int]) -> Sample:
    keys = tuple(KEYS[i] for i in rows)
    spec = TokenizerSpec(name="test", modality="image", kind="none")
    return Sample(keys, x[rows], raw[rows].clamp(0, 1), raw[rows], Code(), spec, groups=keys)


def run(metric, order: list[int], size: int, shards: int) -> dict[str, float | None]:
    x, raw = pictures()
    whole: State = {}
    for shard in range(shards):
        part, state, reference = order[shard::shards], metric.init(), metric.init()
        for start in range(0, len(part), size):
            rows = batch(x, raw, part[start : start + size])
            state, reference = metric.update(state, rows), metric.update_reference(reference, rows)
        whole = merge_states(whole, merge_states(state, reference))
        whole = metric.bound(whole) if hasattr(metric, "bound") else whole
    return metric.compute(whole)


def extracted() -> tuple[features.Features, features.Features]:
    """Features of (references, reconstructions) in the order of the pool: by the sha256 of the key."""
    x, raw = pictures()
    order = sorted(range(N), key=lambda i: row_name(KEYS[i]))
    rows = batch(x, raw, order)
    both = (features.picture(rows, side, "round") for side in ("reference", "reconstruction"))
    reference, reconstruction = (Stub()(images) for images in both)
    return reference, reconstruction


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("shards", [1, 4])
def test_order_batch_and_split_change_no_bit(weights: str, size: int, shards: int) -> None:
    order = np.random.Generator(np.random.PCG64(size)).permutation(N).tolist()
    for metric in (
        InceptionScore(weights=weights),
        Kid(weights=weights, pool=25, subset_size=10, subsets=3),
        PrecisionRecall(weights=weights, pool=25),
    ):
        expected = run(metric, list(range(N)), N, 1)
        assert run(metric, order, size, shards) == expected
        assert all(value is not None for value in expected.values())


def test_score_is_that_of_torch_fidelity_in_one_split(weights: str) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    reference, reconstruction = extracted()
    found = run(InceptionScore(weights=weights), list(range(N)), 8, 1)
    one = isc_features_to_metric(reconstruction.logits, splits=1, shuffle=False)["inception_score_mean"]
    assert one > 1.2
    assert found["isc"] == pytest.approx(one, rel=1e-6)
    ceiling = isc_features_to_metric(reference.logits, splits=1, shuffle=False)["inception_score_mean"]
    assert found["isc_reference"] == pytest.approx(ceiling, rel=1e-6)


def test_ten_parts_are_those_of_torch_fidelity_on_the_same_parts(weights: str) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    _, reconstruction = extracted()
    names = sorted(row_name(key) for key in KEYS)
    scores = []
    for part in range(SPLITS):
        inside = [i for i, name in enumerate(names) if int(name, 16) % SPLITS == part]
        assert inside
        scores.append(isc_features_to_metric(reconstruction.logits[inside], 1, False)["inception_score_mean"])
    found = run(InceptionScore(weights=weights), list(range(N)), 8, 1)
    assert found["isc_10"] == pytest.approx(float(np.mean(scores)), rel=1e-6)
    assert found["isc_10_std"] == pytest.approx(float(np.std(scores)), rel=1e-5)


def test_kid_is_that_of_torch_fidelity_on_the_pool(weights: str) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    reference, reconstruction = extracted()
    for pool in (N, 40):
        theirs = kid_features_to_metric(
            reconstruction.pool[:pool], reference.pool[:pool], kid_subsets=4, kid_subset_size=20, verbose=False
        )
        found = run(Kid(weights=weights, pool=pool, subset_size=20, subsets=4), list(range(N)), 9, 2)
        assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
        assert found["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_the_pool_keeps_the_smallest_names_and_no_more(weights: str) -> None:
    metric = Kid(weights=weights, pool=20, subset_size=10)
    x, raw = pictures()
    state: State = {}
    for start in range(0, N, 8):
        state = metric.update(state, batch(x, raw, list(range(start, min(start + 8, N)))))
        assert len(state) <= 20
    assert sorted(key.rpartition("/")[2] for key in state) == sorted(row_name(key) for key in KEYS)[:20]


def test_precision_and_recall_are_those_of_torch_fidelity(weights: str) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    reference, reconstruction = extracted()
    theirs = prc_features_to_metric(reconstruction.pool, reference.pool, prc_neighborhood=3, verbose=False)
    found = run(PrecisionRecall(weights=weights), list(range(N)), 9, 2)
    assert 0 < found["precision"] <= 1
    assert found == {"precision": theirs["precision"], "recall": theirs["recall"]}


def test_too_few_images_are_undefined_with_a_reason(weights: str) -> None:
    metric = Kid(weights=weights)
    assert run(metric, list(range(N)), 8, 1) == {"kid": None, "kid_std": None}
    assert "subset_size" in metric.undefined["kid"]
    assert InceptionScore(weights=weights).compute({}) == dict.fromkeys(
        ("isc", "isc_10", "isc_10_std", "isc_reference")
    )


def test_wrong_options_say_so() -> None:
    with pytest.raises(UsageError, match="subset_size"):
        Kid(pool=10, subset_size=20)
    with pytest.raises(UsageError, match="neighbours"):
        PrecisionRecall(neighbours=0)
