"""Perturbed FID: rFID after tokens are replaced by near ones, by a published grid or as RobustTok's released code does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State

from ._backbones import digest, fetch, require
from ._exact import SHIFTS, add_rows, bounded
from .features import INCEPTION, Inception, Side
from .frechet import PRESETS, FrechetDistance, Rfid, distance
from .perturbation import GRID, check_released, neighbours_of, perturbed, released

COLUMN = "pfid@tokbench-v1"
"""Named by its grid, so that no board sets it beside the pFID of papers, whose grid nobody published."""

_PRESET = "torch-fidelity"


class PerturbedFid:
    """Fréchet distance between references and reconstructions of perturbed codes, `pfid@tokbench-v1`.

    The perturbations are those of the metric `perturbation`: alpha 0.1, 0.25, 0.5, 1 by delta 10, 100, 1 %, beta 1, seeded
    by (protocol seed, key). `pfid@tokbench-v1` is the mean over the twelve cells, each of which is a column
    `pfid@tokbench-v1/a0.1-d10`; Inception, rounding and distance are those of `rfid`. After "RobustTok" (arXiv
    2503.08354), whose grid and averaging were never published: **not to be set beside the pFID of that paper**.

    A batch costs twelve decodes and twelve passes of Inception. The state is exact like that of `rfid`, and holds up to
    13 times 17 MB once there are more than 2048 images.

    Args:
        weights: An Inception weight file of one's own.
    """

    def __init__(self, *, weights: str = "") -> None:
        self._weights = weights
        self._extract = Inception(PRESETS[_PRESET].front, weights)
        self.undefined: Mapping[str, str] = {COLUMN: "needs at least two images"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        return MetricSpec(
            name="pfid",
            needs=("neighbours", "edit"),
            modalities=("image",),
            kinds=("discrete",),
            columns=(Column(COLUMN, "", False, "mean of 12 cells, not the pFID of papers", 1e-3, 3, where="corpus"),),
            summary="FID after tokens are replaced by near ones, grid tokbench-v1",
            reference="after arXiv 2503.08354; the grid is tokbench's own",
            protocol={
                "grid": [cell.name for cell in GRID],
                "beta": 1.0,
                "itself": "excluded",
                "preset": _PRESET,
                "steps": SHIFTS[0],
                "weights": digest(INCEPTION, self._weights),
            },
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(INCEPTION, self._weights, offline)

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the perturbed reconstructions of a batch added.

        Raises:
            NotApplicable: The tokenizer does not say what lies near an entry of its codebooks.
            WeightsAbsent: Inception's weights are not on this machine.
        """
        neighbours_of("pfid", sample)
        require(INCEPTION, self._weights)
        images = perturbed(sample)
        pools: dict[int, Tensor] = {}  # cells that are one on this codebook share one image
        for cell, image in images.items():
            if id(image) not in pools:
                probe = replace(sample, reconstruction=image, raw=image, memo={})
                pools[id(image)] = self._extract(probe, "reconstruction", PRESETS[_PRESET].variant).pool
            state = bounded(add_rows(state, cell.name, sample.keys, pools[id(image)]), cell.name)
        return state

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added: the part that every tokenizer shares."""
        found = self._extract(sample, "reference", PRESETS[_PRESET].variant)
        return bounded(add_rows(state, "reference", sample.keys, found.pool), "reference")

    def bound(self, state: State) -> State:
        """Return an equal state of bounded size."""
        for side in ("reference", *(cell.name for cell in GRID)):
            state = bounded(state, side)
        return state

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the distance of every cell and their mean; None with fewer than two images."""
        reference = {key: value for key, value in state.items() if key.startswith("reference/")}
        out: dict[str, float | None] = {COLUMN: None}
        for cell in GRID:
            start = f"{cell.name}/"
            own = {f"reconstruction/{k.removeprefix(start)}": v for k, v in state.items() if k.startswith(start)}
            out[f"{COLUMN}/{cell.name}"] = distance({**reference, **own})
        values = [out[f"{COLUMN}/{cell.name}"] for cell in GRID]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            out[COLUMN] = math.fsum(known) / len(known)
        return out


class ReleasedPerturbedFid(FrechetDistance):
    """Fréchet distance between references and reconstructions under RobustTok's released training perturbation.

    The codes are those of the metric `perturbation_released`, whose description says how they differ from the paper's;
    every image is perturbed. Inception, rounding and distance are those of `rfid`. **Not to be set beside the pFID of
    papers**: which alpha, beta and delta those were evaluated with was never published.

    Args:
        alpha: Probability with which a token is perturbed; 1 in the released configuration.
        delta: Candidates; 100 in the released configuration.
        weights: An Inception weight file of one's own.

    Raises:
        UsageError: `alpha` is not in [0, 1] or `delta` is below 1.
    """

    def __init__(self, *, alpha: float = 1.0, delta: int = 100, weights: str = "") -> None:
        super().__init__("pfid_released", self._seen)
        check_released(self.column, alpha, delta)
        self._alpha, self._delta, self._fid = alpha, delta, Rfid(preset=_PRESET, weights=weights)
        self.undefined: Mapping[str, str] = {self.column: "needs at least two images"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        text = f"under the released perturbation, alpha {self._alpha:g}, delta {self._delta}"
        return MetricSpec(
            name=self.column,
            needs=("neighbours", "unquantized", "edit"),
            modalities=("image",),
            kinds=("discrete",),
            columns=(Column(self.column, "", False, text, 1e-3, 3, where="corpus"),),
            summary="FID under RobustTok's released training perturbation",
            reference="lxa9867/ImageFolder tokenizer/tokenizer_image/latent_perturbation.py",
            protocol={**self._fid.spec.protocol, "alpha": self._alpha, "beta": 1.0, "delta": self._delta},
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        self._fid.fetch(offline=offline)

    def _seen(self, sample: Sample, side: Side) -> Tensor:
        if side == "reconstruction":
            image = released(sample, self._alpha, self._delta)[1]
            sample = replace(sample, reconstruction=image, raw=image, memo={})
        return self._fid.features(sample, side)
