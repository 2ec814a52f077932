"""Reconstruction FID: the Fréchet distance between Inception features of references and reconstructions, by preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray, Sample, State

from ._backbones import digest, fetch
from ._exact import SHIFTS, Array, Moments, add_rows, bounded, count, kept_rows, moments, on_grid
from .features import INCEPTION, Front, Inception, Side, Variant

Indices = npt.NDArray[np.int64]

DEFAULT = "torch-fidelity"


@dataclass(frozen=True)
class Preset:
    """What a published rFID does behind the decoder.

    Attributes:
        variant: How the decoder's output becomes an image.
        front: Of Inception.
        used_by: Who publishes it.
        reference: `exact`: the originals as they were encoded; `truncated`: as `truncated` leaves them.
    """

    variant: Variant
    front: Front
    used_by: str
    reference: Literal["exact", "truncated"] = "exact"


PRESETS: Mapping[str, Preset] = {
    "torch-fidelity": Preset("round", "tf1", "torch-fidelity: UniTok, FVQ, taming"),
    "adm": Preset("round", "tf1", "OpenAI's evaluator: LlamaGen, XQ-GAN, RobusTok, GigaTok, RAE"),
    "titok": Preset("round", "tf1", "1d-tokenizer: TiTok, MaskBit, ReVQ"),
    "seed-voken": Preset("clamp", "bilinear", "SEED-Voken: Open-MAGVIT2, IBQ; FlowMo, SimVQ, WeTok"),
    "bsq": Preset("raw", "bilinear", "BSQ-ViT"),
    "pytorch-fid": Preset("round", "bilinear", "pytorch-fid on folders: LightningDiT, RQ-VAE"),
    "dc-ae": Preset("round", "bilinear", "efficientvit: DC-AE, at 512"),
    "clean": Preset("round", "clean", "clean-fid: VQGAN-LC"),
    "torchmetrics": Preset(
        "truncate", "antialias", "torchmetrics from 1.8 on truncated 8-bit images: VTBench", reference="truncated"
    ),
}
"""Preset -> its arithmetic. What comes before it (crop, size, data) is the suite's."""


class FrechetDistance:
    """What the metrics that are Fréchet distances share: exact sums of a network's features, a side each.

    Args:
        column: Where the distance stands.
        features: Gives the (B, d) features of one side of a batch; what it raises, `update` raises.
        divide_by_n: Whether covariances are divided by n in place of n - 1.
    """

    def __init__(self, column: str, features: Callable[[Sample, Side], Tensor], *, divide_by_n: bool = False) -> None:
        self.column, self.features, self._divide_by_n = column, features, divide_by_n

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the reconstructions of a batch added. Raises NotApplicable, NotAvailable."""
        return self._added(state, sample, "reconstruction")

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added: the part that every tokenizer shares."""
        return self._added(state, sample, "reference")

    def bound(self, state: State) -> State:
        """Return an equal state of bounded size."""
        return bounded(bounded(state, "reference"), "reconstruction")

    def on_subsets(self, reference: FloatArray, reconstruction: FloatArray, subsets: Indices) -> Array:
        """Return the distance of each of (R, m) subsets of the samples, given their (N, d) features."""
        return subset_distances(reference, reconstruction, subsets, divide_by_n=self._divide_by_n)

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the distance; None with fewer than two samples."""
        return {self.column: distance(state, divide_by_n=self._divide_by_n)}

    def _added(self, state: State, sample: Sample, side: Side) -> State:
        return self.bound(add_rows(state, side, sample.keys, self.features(sample, side)))


class Rfid(FrechetDistance):
    """Reconstruction FID of images, in one of the nine forms that are published under that name.

    `rfid` is the preset `torch-fidelity`: 8-bit images, TensorFlow-compatible Inception and resize, n - 1. It is what
    OpenAI's evaluator computes from the same pixels (to 1e-6), with a maintained implementation. Other presets have their
    own column, `rfid_<preset>`, so that no two definitions share one. Presets that share a front end share its forward
    pass of the references, and that of the reconstructions where the rounding is the same.

    The state is exact. A feature is rounded to a grid of 2^-16 (values below 14.6; rows with a larger value to a coarser
    one), so every sum is an integer: the same bits for any batch, order or split of up to 10^7 images. Rounding moves each
    feature by at most 2^-17, hence √FID by at most 2·√2048·2^-17 = 7e-4 were all errors to conspire, and FID, since they do
    not, by about 2048·2^-32/6 = 8e-8.

    The Fréchet distance is torch-fidelity's function. With fewer than 2048 images in all, it is given the coordinates in
    the subspace that the images span: the same distance, without the 2048 eigenvalues of which most are rounding noise.
    FID has a bias that falls with the number of images: compare only numbers of the same n.

    Args:
        preset: One of `PRESETS`.
        weights: An Inception weight file of one's own.
        covariance: `n-1`, as all nine presets have it, or `n`; the column then ends in `_biased`.

    Raises:
        UsageError: No such preset or covariance, or `weights` names nothing.
    """

    def __init__(self, *, preset: str = DEFAULT, weights: str = "", covariance: Literal["n-1", "n"] = "n-1") -> None:
        if preset not in PRESETS:
            raise UsageError(f"rfid: unknown preset {preset!r}; one of {', '.join(sorted(PRESETS))}")
        if covariance not in ("n-1", "n"):
            raise UsageError(f"rfid: covariance is n-1 or n, got {covariance!r}")
        self._name, self._preset, self._weights, self._covariance = preset, PRESETS[preset], weights, covariance
        self._extract = Inception(self._preset.front, weights)
        own = "" if preset == DEFAULT else f"_{preset.replace('-', '_')}"
        column = f"rfid{own}{'_biased' if covariance == 'n' else ''}"
        super().__init__(column, self._seen, divide_by_n=covariance == "n")
        self.undefined: Mapping[str, str] = {self.column: "needs at least two images"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        text = f"Fréchet distance of Inception features, preset {self._name} ({self._preset.used_by})"
        return MetricSpec(
            name=self.column,
            modalities=("image",),
            columns=(Column(self.column, "", False, text, atol=1e-3, decimals=3, where="corpus"),),
            summary="Reconstruction FID",
            reference="torch_fidelity.calculate_metrics(fid=True); pytorch_fid; cleanfid; torchmetrics",
            protocol={
                "preset": self._name,
                "input": self._preset.variant,
                "front": self._preset.front,
                **({} if self._preset.reference == "exact" else {"reference": self._preset.reference}),
                "covariance": self._covariance,
                "grid": SHIFTS[0],
                "weights": digest(INCEPTION, self._weights),
            },
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(INCEPTION, self._weights, offline)

    def _seen(self, sample: Sample, side: Side) -> Tensor:
        if side == "reference" and self._preset.reference == "truncated":
            # The one preset with its front end: no pass is lost by a memo of its own.
            sample = replace(sample, reference=truncated(sample.reference), memo={})
        return self._extract(sample, side, self._preset.variant).pool


def truncated(x: Tensor) -> Tensor:
    """Return 8-bit pictures as VTBench writes its originals: to [-1, 1] and back in float32, then cut to whole levels.

    95 of the 256 levels come out one too low.
    """
    signed = (torch.arange(256, dtype=torch.float64) / 255 * 2 - 1).float()
    levels = ((signed + 1) / 2 * 255).floor() / 255
    return levels.to(x.device)[(x * 255).round().long()]


def distance(state: State, *, divide_by_n: bool = False) -> float | None:
    """Return the Fréchet distance between the two sides of a state of `_exact.add_rows`, or None below two rows a side."""
    n, m = count(state, "reference"), count(state, "reconstruction")
    if min(n, m) < 2:
        return None
    x, y = kept_rows(state, "reference"), kept_rows(state, "reconstruction")
    if x is not None and y is not None and n + m < x.shape[1]:
        a, b = _in_their_span(x, y)
    else:
        first, second = moments(state, "reference"), moments(state, "reconstruction")
        if first is None or second is None:
            return None
        a, b = first, second
    return frechet(_scaled(a, divide_by_n), _scaled(b, divide_by_n))


def subset_distances(
    reference: FloatArray, reconstruction: FloatArray, subsets: Indices, *, divide_by_n: bool = False
) -> Array:
    """Return the Fréchet distance of each of (R, m) subsets of N pairs of d features, without a matrix of d x d.

    With centred rows X and Y the trace of (Σ₁Σ₂)^½ is the sum of the singular values of XYᵀ / (m - 1), and every term follows
    from three N x N tables of products: a subset costs one m x m decomposition. Equal to `distance` up to rounding.
    """
    x, y = (on_grid(torch.from_numpy(np.array(side))).numpy() for side in (reference, reconstruction))
    centre = x.mean(0)
    x, y = x - centre, y - centre
    xx, xy, yy = x @ x.T, x @ y.T, y @ y.T
    found = []
    for subset in subsets:
        at = np.ix_(subset, subset)
        a, b, c = xx[at], xy[at], yy[at]
        m = len(subset)
        centred = b - b.mean(0) - b.mean(1)[:, None] + b.mean()
        spread = np.trace(a) - m * a.mean() + np.trace(c) - m * c.mean()
        shared = np.linalg.svd(centred, compute_uv=False).sum()
        between = a.mean() - 2 * b.mean() + c.mean()
        found.append(between + (spread - 2 * shared) / (m if divide_by_n else m - 1))
    return np.array(found, np.float64)


def frechet(a: Moments, b: Moments) -> float:
    """Return |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), by torch-fidelity's function."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = ({"mu": side.mean, "sigma": side.covariance} for side in (a, b))
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


def _in_their_span(x: Array, y: Array) -> tuple[Moments, Moments]:
    """Return the moments of (n, d) and (m, d) rows in an orthonormal basis of what they span: the distance is the same."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    stacked = np.concatenate([x - mean_x, y - mean_y, (mean_x - mean_y)[None]])
    coordinates: Array = np.transpose(np.linalg.qr(stacked.T, mode="r"))
    rows_x, rows_y, gap = coordinates[: len(x)], coordinates[len(x) : -1], coordinates[-1]
    return (
        Moments(len(x), gap, rows_x.T @ rows_x / (len(x) - 1)),
        Moments(len(y), np.zeros_like(gap), rows_y.T @ rows_y / (len(y) - 1)),
    )


def _scaled(side: Moments, divide_by_n: bool) -> Moments:
    if not divide_by_n:
        return side
    return Moments(side.count, side.mean, side.covariance * ((side.count - 1) / side.count))
