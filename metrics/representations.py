"""Distances of sets of images in the features of vision transformers: FD on DINOv2, and CMMD on CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray, Sample, State

from . import vit
from ._exact import SHIFTS, Array
from ._hub import fetch, identity
from ._pools import add_pool, pool_rows, smallest
from .frechet import FrechetDistance, Indices

SIGMA, SCALE = 10.0, 1000.0
_BLOCK = 1024


class FdDinov2(FrechetDistance):
    """Fréchet distance between DINOv2 features of references and reconstructions; lower is closer.

    The protocol of dgm-eval with its defaults: ViT-L/14, PIL bicubic to 224, ImageNet's mean and deviation, class token,
    n - 1. Human judges of generated images agree with it better than with FID. Sums are exact and the distance is rFID's;
    like FID it is biased by the number of images: compare equal n.

    Reference: Stein et al. 2023, arXiv 2306.04675; layer6ai-labs/dgm-eval, `--model dinov2 --metrics fd`.

    Args:
        model: A DINOv2 on the hub.
        weights: A folder with `config.json` and the weights where they are in no usual place.
    """

    def __init__(self, *, model: str = "facebook/dinov2-large", weights: str = "") -> None:
        self._encoder = vit.dinov2(model, weights)
        super().__init__("fd_dinov2", self._encoder)
        self.undefined: Mapping[str, str] = {self.column: "needs at least two images"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights are among them."""
        text = f"Fréchet distance of {self._encoder.checkpoint.hub} features, as dgm-eval"
        return MetricSpec(
            name=self.column,
            modalities=("image",),
            columns=(Column(self.column, "", False, text, atol=1e-2, decimals=2, where="corpus"),),
            summary="Fréchet distance on DINOv2",
            reference="dgm_eval --model dinov2 --metrics fd",
            protocol={
                **self._encoder.settings(),
                "covariance": "n-1",
                "grid": SHIFTS[0],
                "weights": identity(self._encoder.checkpoint),
            },
            extra="transformers",
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(self._encoder.checkpoint, offline)


class Cmmd:
    """CLIP maximum mean discrepancy between references and reconstructions; lower is closer, 0 is equal.

    The squared MMD, biased (minimum-variance) estimate, of CLIP ViT-L/14-336 embeddings of length 1 under the kernel
    exp(-|x - y|² / 200), times 1000. It assumes no Gaussian and settles with fewer images than FID. Computed in float64 on
    the images whose keys hash lowest, `pool` of them on both sides (all of a smaller set), so that any order, batch or
    split gives the same bits.

    Reference: Jayasumana et al. 2024, arXiv 2401.09603; google-research/cmmd, sayakpaul/cmmd-pytorch.

    Args:
        pool: Images kept, 3 KiB a side each.
        model: A CLIP on the hub.
        weights: A folder with `config.json` and the weights where they are in no usual place.

    Raises:
        UsageError: `pool` is not positive.
    """

    column = "cmmd"

    def __init__(
        self, *, pool: int = 10_000, model: str = "openai/clip-vit-large-patch14-336", weights: str = ""
    ) -> None:
        if pool < 1:
            raise UsageError(f"cmmd: pool is a number of images, got {pool}")
        self._pool, self._encoder = pool, vit.clip(model, weights)
        self.undefined: Mapping[str, str] = {self.column: "no image"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights are among them."""
        return MetricSpec(
            name=self.column,
            modalities=("image",),
            columns=(Column(self.column, "", False, "1000 · MMD² of CLIP embeddings, σ 10", 1e-4, 4, "corpus"),),
            summary="CLIP maximum mean discrepancy",
            reference="google-research/cmmd; sayakpaul/cmmd-pytorch",
            protocol={
                **self._encoder.settings(),
                "sigma": SIGMA,
                "scale": SCALE,
                "pool": self._pool,
                "weights": identity(self._encoder.checkpoint),
            },
            extra="transformers",
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(self._encoder.checkpoint, offline)

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the reconstructions of a batch added. Raises NotAvailable."""
        found = self._encoder(sample, "reconstruction")
        return add_pool(state, "reconstruction", sample.keys, found, self._pool)

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added."""
        return add_pool(state, "reference", sample.keys, self._encoder(sample, "reference"), self._pool)

    def bound(self, state: State) -> State:
        """Return the part of a merged state that counts: the pool."""
        return smallest(smallest(state, "reference", self._pool), "reconstruction", self._pool)

    def on_subsets(self, reference: FloatArray, reconstruction: FloatArray, subsets: Indices) -> Array:
        """Return the discrepancy of each of (R, m) subsets of the images, given their (N, d) embeddings."""
        x, y = (torch.from_numpy(np.array(side)).double() for side in (reference, reconstruction))
        tables = [_kernel(a, b).numpy() for a, b in ((x, x), (y, y), (x, y))]
        found = []
        for subset in subsets:
            at = np.ix_(subset, subset)
            xx, yy, xy = (table[at].mean() for table in tables)
            found.append(SCALE * (xx + yy - 2 * xy))
        return np.array(found, np.float64)

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the discrepancy; None without images."""
        state = self.bound(state)
        x, y = (pool_rows(state, side) for side in ("reference", "reconstruction"))
        if not x or not y:
            return {self.column: None}
        return {self.column: discrepancy(torch.stack(x), torch.stack(y))}


def discrepancy(x: Tensor, y: Tensor) -> float:
    """Return 1000 · MMD² of (n, d) and (m, d) embeddings, biased estimate, in float64."""
    x, y = x.double(), y.double()
    return SCALE * (_mean(x, x) + _mean(y, y) - 2 * _mean(x, y))


def _mean(x: Tensor, y: Tensor) -> float:
    total = sum(float(_kernel(a, b).sum()) for a in torch.split(x, _BLOCK) for b in torch.split(y, _BLOCK))
    return total / (len(x) * len(y))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    lengths = (x * x).sum(1)[:, None] + (y * y).sum(1)[None]
    return torch.exp((2 * (x @ y.T) - lengths) / (2 * SIGMA**2))
