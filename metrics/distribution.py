"""Inception Score, KID, precision and recall of reconstructions, from the features that rFID uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State

from ._backbones import digest, fetch
from ._exact import row_name
from ._pools import add_pool, pool_rows, smallest
from .features import INCEPTION, Features, Inception, Side

SPLITS = 10
_P_BITS, _H_BITS = 38, 36


class InceptionScore:
    """Inception Score of the reconstructions: exp of the mean KL from p(y|x) to p(y), logits without the bias.

    Three definitions are in use, and they differ by how many images share a p(y):

    | column | rule | used by |
    |---|---|---|
    | `isc` | one p(y) over the whole set | 1d-tokenizer (TiTok, TA-TiTok, MaskBit) |
    | `isc_10` | mean over ten parts | torch-fidelity (ten parts of a shuffle), ADM (blocks of 5,000 in file order) |

    At 50,000 images ten parts hold about 5,000 each, as ADM's and torch-fidelity's do; a part here is the images whose key
    hashes to it, which no order or batch can change. `isc_reference` is `isc` of the references: the ceiling.
    Sums are integers (p in steps of 2^-38, Σ p·ln p in steps of 2^-36), exact up to 10^7 images.

    Reference: Salimans et al. 2016; torch_fidelity.calculate_metrics(isc=True, isc_splits=1) is `isc`.
    """

    def __init__(self, *, weights: str = "") -> None:
        self._weights = weights
        self._extract = Inception("tf1", weights)
        self.undefined: Mapping[str, str] = {
            "isc_10": f"one of the {SPLITS} parts has no image",
            "isc_10_std": f"one of the {SPLITS} parts has no image",
            "isc": "no image",
            "isc_reference": "no image",
        }

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="isc",
            modalities=("image",),
            columns=(
                Column("isc", "", True, "one p(y) over the set, as TiTok", 1e-3, 2, "corpus"),
                Column("isc_10", "", True, "mean of ten parts, as ADM and torch-fidelity", 1e-3, 2, "corpus"),
                Column("isc_10_std", "", None, "standard deviation over the ten parts", 1e-3, 2, "corpus", level=False),
                Column("isc_reference", "", None, "isc of the references", 1e-3, 2, "corpus", level=False),
            ),
            summary="Inception Score",
            reference="torch_fidelity.calculate_metrics(isc=True)",
            protocol={"logits": "unbiased", "splits": SPLITS, "weights": digest(INCEPTION, self._weights)},
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(INCEPTION, self._weights, offline)

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the reconstructions of a batch added. Raises WeightsAbsent."""
        return _add_scores(state, "reconstruction", sample, self._extract(sample, "reconstruction", "round"))

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added."""
        return _add_scores(state, "reference", sample, self._extract(sample, "reference", "round"))

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the four columns."""
        parts = [_score(state, "reconstruction", [part]) for part in range(SPLITS)]
        whole = [value for value in parts if value is not None]
        ten = len(whole) == SPLITS
        return {
            "isc": _score(state, "reconstruction", range(SPLITS)),
            "isc_10": float(np.mean(whole)) if ten else None,
            "isc_10_std": float(np.std(whole)) if ten else None,
            "isc_reference": _score(state, "reference", range(SPLITS)),
        }


class _InceptionPool:
    """The state `Kid` and `PrecisionRecall` have: Inception features of the images whose keys have the smallest sha256."""

    def __init__(self, pool: int, weights: str) -> None:
        self._pool, self._weights = pool, weights
        self._extract = Inception("tf1", weights)

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(INCEPTION, self._weights, offline)

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the reconstructions of a batch added. Raises WeightsAbsent."""
        found = self._extract(sample, "reconstruction", "round").pool
        return add_pool(state, "reconstruction", sample.keys, found, self._pool)

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added."""
        found = self._extract(sample, "reference", "round").pool
        return add_pool(state, "reference", sample.keys, found, self._pool)

    def bound(self, state: State) -> State:
        """Return the part of a merged state that counts: the pool."""
        return smallest(smallest(state, "reference", self._pool), "reconstruction", self._pool)


class Kid(_InceptionPool):
    """Kernel Inception Distance: the unbiased MMD² with the kernel (x·y / 2048 + 1)³, mean over random subsets.

    Torch-fidelity's function with its defaults (100 subsets of 1,000, seed 2020) on a sample of the images: the `pool` whose
    keys have the smallest sha256, on both sides the same. Up to `pool` images that is all of them. The sample depends on
    the keys alone, so any order, batch or split gives the same bits; the estimate is unbiased whatever the pool.

    Args:
        pool: Images kept, 8 KiB a side each.
        subset_size: Images a subset.
        subsets: How many.
        weights: An Inception weight file of one's own.
    """

    def __init__(self, *, pool: int = 5000, subset_size: int = 1000, subsets: int = 100, weights: str = "") -> None:
        if not 2 <= subset_size <= pool or subsets < 1:
            raise UsageError(
                f"kid: needs 2 <= subset_size <= pool and subsets >= 1, got {subset_size}, {pool}, {subsets}"
            )
        super().__init__(pool, weights)
        self._size, self._subsets = subset_size, subsets
        why = f"fewer than {subset_size} images; lower it with kid?subset_size="
        self.undefined: Mapping[str, str] = {"kid": why, "kid_std": why}

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="kid",
            modalities=("image",),
            columns=(
                Column("kid", "", False, "mean over subsets; may be slightly negative", 1e-5, 5, "corpus"),
                Column("kid_std", "", None, "standard deviation over subsets", 1e-5, 5, "corpus", level=False),
            ),
            summary="Kernel Inception Distance",
            reference="torch_fidelity.calculate_metrics(kid=True)",
            protocol={
                "pool": self._pool,
                "subset_size": self._size,
                "subsets": self._subsets,
                "weights": digest(INCEPTION, self._weights),
            },
        )

    def compute(self, state: State) -> dict[str, float | None]:
        """Return `kid` and `kid_std`, or None below `subset_size` images."""
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        state = self.bound(state)
        x, y = pool_rows(state, "reconstruction"), pool_rows(state, "reference")
        if min(len(x), len(y)) < self._size:
            return {"kid": None, "kid_std": None}
        found = kid_features_to_metric(
            torch.stack(x), torch.stack(y), kid_subsets=self._subsets, kid_subset_size=self._size, verbose=False
        )
        return {"kid": float(found[KEY_METRIC_KID_MEAN]), "kid_std": float(found[KEY_METRIC_KID_STD])}


class PrecisionRecall(_InceptionPool):
    """Improved precision and recall: the share of reconstructions inside the references' manifold, and the reverse.

    Torch-fidelity's function (k nearest neighbours, k = 3) on the same kind of pool as `Kid`; both numbers depend on the
    number of images, so compare equal n and `pool` only.

    Reference: Kynkäänniemi et al. 2019; torch_fidelity.calculate_metrics(prc=True), whose default features are VGG16's,
    here Inception's.
    """

    def __init__(self, *, pool: int = 5000, neighbours: int = 3, weights: str = "") -> None:
        if not 1 <= neighbours < pool:
            raise UsageError(f"prc: needs 1 <= neighbours < pool, got {neighbours} and {pool}")
        super().__init__(pool, weights)
        self._k = neighbours
        why = f"needs more than {neighbours} images"
        self.undefined: Mapping[str, str] = {"precision": why, "recall": why}

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="prc",
            modalities=("image",),
            columns=(
                Column("precision", "", True, "reconstructions near a reference", 1e-3, 3, "corpus"),
                Column("recall", "", True, "references near a reconstruction", 1e-3, 3, "corpus"),
            ),
            summary="Improved precision and recall on Inception features",
            reference="torch_fidelity.metric_prc.prc_features_to_metric",
            protocol={
                "pool": self._pool, "neighbours": self._k, "features": "inception",
                "weights": digest(INCEPTION, self._weights),
            },
        )  # fmt: skip

    def compute(self, state: State) -> dict[str, float | None]:
        """Return `precision` and `recall`, or None with too few images."""
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        state = self.bound(state)
        x, y = pool_rows(state, "reconstruction"), pool_rows(state, "reference")
        if min(len(x), len(y)) <= self._k:
            return {"precision": None, "recall": None}
        found = prc_features_to_metric(
            torch.stack(x), torch.stack(y), prc_neighborhood=self._k, save_cpu_ram=True, verbose=False
        )
        return {"precision": float(found[KEY_METRIC_PRECISION]), "recall": float(found[KEY_METRIC_RECALL])}


# ---------------------------------------------------------------------------------------------- sums of the score


def _add_scores(state: State, side: Side, sample: Sample, features: Features) -> State:
    new = dict(state)
    logits = features.logits.detach().to(device="cpu", dtype=torch.float64)
    for key, row in zip(sample.keys, logits, strict=True):
        part = int(row_name(key), 16) % SPLITS
        log_p = torch.log_softmax(row, 0)
        p = log_p.exp()
        for name, value in (
            (f"{side}/count/{part}", torch.tensor(1)),
            (f"{side}/p/{part}", _steps(p, _P_BITS)),
            (f"{side}/plogp/{part}", _steps((p * log_p).sum(), _H_BITS)),
        ):
            new[name] = new[name] + value if name in new else value
    return new


def _steps(x: Tensor, bits: int) -> Tensor:
    return torch.round(x * 2.0**bits).to(torch.int64)


def _score(state: State, side: Side, parts: range | list[int]) -> float | None:
    held = [part for part in parts if f"{side}/count/{part}" in state]
    if not held:
        return None
    count = sum(int(state[f"{side}/count/{part}"]) for part in held)
    sums = torch.stack([state[f"{side}/p/{part}"] for part in held]).sum(0)
    plogp = sum(int(state[f"{side}/plogp/{part}"]) for part in held)
    q = sums.double().numpy() / 2.0**_P_BITS / count
    used = q[q > 0]
    return math.exp(plogp / 2**_H_BITS / count - math.fsum(used * np.log(used)))
