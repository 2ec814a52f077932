"""Where the error lies: PSNR of three bands of spatial frequency, and errors of gradients and edges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._probe import CAP, decibels
from ._rows import by_rows, checked_pair, sum_behind

NAMES = ("low", "mid", "high")

EDGES = (1 / 16, 1 / 4)
"""Cycles per pixel between the bands: periods longer than 16 px are low, shorter than 4 px high."""


class BandPsnr:
    """PSNR of the error in three bands of the orthonormal two-dimensional DCT-II of the whole picture, R, G and B alike.

    Coefficient (u, v) of an H x W picture has the frequency sqrt((u / 2H)² + (v / 2W)²) in cycles per pixel, 0.5 being
    Nyquist's along an axis: `low` is below 1/16 (periods longer than 16 px), `high` from 1/4 on (shorter than 4 px), `mid`
    between. The transform keeps sums of squares, so `mse_low + mse_mid + mse_high` is the MSE of the metric `psnr`; a band's
    PSNR is 10 log10(1 / its part), at most 100 dB. `energy_high` is the reconstruction's energy in the high band over the
    reference's: below 1 blur, above 1 noise. A band without a coefficient (a picture of few pixels) has no error: 100 dB.
    Video: frame by frame, errors averaged over the clip.
    """

    def __init__(self) -> None:
        self.undefined: Mapping[str, str] = {"energy_high": "the reference has nothing in the high band"}
        self.spec = MetricSpec(
            name="bands",
            modalities=("image", "video"),
            columns=(
                *(Column(f"psnr_{name}", "dB", True, _describe(name), 1e-6, 2) for name in NAMES),
                Column("energy_high", "", None, "energy above 1/4 cycle/px, reconstruction / reference", 1e-6, 3),
                *(Column(f"mse_{name}", "", False, _describe(name), 1e-12, 6, level=False) for name in NAMES),
            ),
            summary="PSNR in low, middle and high spatial frequencies",
            reference="scipy.fft.dctn(type=2, norm='ortho')",
            protocol={"transform": "dct-ii", "edges_cycles_per_pixel": EDGES, "cap": CAP},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: seven columns, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("bands", sample)
        sums = by_rows(_energies, x, y) / x[0].numel()
        out = {}
        for index, name in enumerate(NAMES):
            out[f"psnr_{name}"] = decibels(sums[:, 0, index])
            out[f"mse_{name}"] = sums[:, 0, index]
        reference, reconstruction = sums[:, 1, 2], sums[:, 2, 2]
        nothing = reference < 1e-12
        out["energy_high"] = torch.where(nothing, torch.nan, reconstruction / reference.clamp(min=1e-12))
        return out


class Edges:
    """Errors of gradients and of edges, for what a mean squared error forgives: softened contours.

    `gradient_mae` is the mean absolute difference of the forward differences along both axes, in [0, 2].
    `edge_mae` is the mean absolute difference of Sobel magnitudes (`skimage.filters.sobel`, each channel, without the
    border of 1 px), in [0, 1]; `edge_strength` the sum of the reconstruction's magnitudes over the reference's: below 1 soft.
    Images and video frame by frame, R, G and B alike; NaN where a side is shorter than 3 px or there is no edge at all.
    """

    def __init__(self) -> None:
        short = "an image side is shorter than 3 px"
        self.undefined: Mapping[str, str] = {
            "gradient_mae": short,
            "edge_mae": short,
            "edge_strength": f"{short}, or the reference has no edge",
        }
        self.spec = MetricSpec(
            name="edges",
            modalities=("image", "video"),
            columns=(
                Column("gradient_mae", "", False, "forward differences along both axes", 1e-9),
                Column("edge_mae", "", False, "Sobel magnitudes", 1e-9),
                Column("edge_strength", "", None, "Sobel magnitude, reconstruction / reference", 1e-6, 3),
            ),
            summary="Gradient and edge error",
            reference="numpy.diff; skimage.filters.sobel",
            protocol={"kernel": "sobel / 4", "border": 1},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: three columns, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("edges", sample)
        if min(x.shape[-2:]) < 3:
            nothing = torch.full((x.shape[0],), math.nan, dtype=torch.float64, device=x.device)
            return {"gradient_mae": nothing, "edge_mae": nothing.clone(), "edge_strength": nothing.clone()}
        height, width = x.shape[-2:]
        planes = x[0].numel() // (height * width)
        sums = by_rows(_edges, x, y)
        inside, steps = planes * (height - 2) * (width - 2), planes * ((height - 1) * width + height * (width - 1))
        flat = sums[:, 2] == 0
        return {
            "gradient_mae": sums[:, 0] / steps,
            "edge_mae": sums[:, 1] / inside,
            "edge_strength": torch.where(flat, torch.nan, sums[:, 3] / torch.where(flat, 1.0, sums[:, 2])),
        }


def _describe(name: str) -> str:
    periods = {"low": "longer than 16 px", "mid": "4 to 16 px", "high": "shorter than 4 px"}
    return f"error of periods {periods[name]}"


def _energies(x: Tensor, y: Tensor) -> Tensor:
    """Return sums of squared coefficients of error, reference and reconstruction in each band: (n, 3, 3) float64."""
    height, width = x.shape[-2:]
    rows, columns = _basis(height).to(x.device), _basis(width).to(x.device)
    a, b = (rows @ signal.to(torch.float64) @ columns.T for signal in (x, y))
    bands = _bands(height, width).to(x.device)
    parts = []
    for coefficients in (a - b, a, b):
        squares = coefficients.square()
        parts.append(torch.stack([sum_behind(squares * (bands == index), 1) for index in range(len(NAMES))], dim=1))
    return torch.stack(parts, dim=1)


@lru_cache(maxsize=8)
def _basis(size: int) -> Tensor:
    """Return the orthonormal DCT-II as a matrix (frequency, place), float64."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / size)
    basis[0] = math.sqrt(1 / size)
    return basis


@lru_cache(maxsize=8)
def _bands(height: int, width: int) -> Tensor:
    """Return the band of every coefficient, (H, W): 0 low, 1 mid, 2 high."""
    u = torch.arange(height, dtype=torch.float64) / (2 * height)
    v = torch.arange(width, dtype=torch.float64) / (2 * width)
    frequency = torch.sqrt(u[:, None] ** 2 + v[None] ** 2)
    return torch.bucketize(frequency, torch.tensor(EDGES, dtype=torch.float64), right=True)


def _edges(x: Tensor, y: Tensor) -> Tensor:
    """Return (n, 4) float64: summed gradient error, Sobel error, and Sobel magnitudes of reference and reconstruction."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    error = y - x
    gradient = sum_behind(error.diff(dim=-1).abs_(), 1) + sum_behind(error.diff(dim=-2).abs_(), 1)
    a, b = _sobel(x), _sobel(y)
    return torch.stack([gradient, sum_behind((a - b).abs(), 1), sum_behind(a, 1), sum_behind(b, 1)], dim=1)


def _sobel(x: Tensor) -> Tensor:
    """Return Sobel magnitudes inside the border: (..., H, W) -> (..., H - 2, W - 2), scaled as scikit-image does."""
    across = x[..., :, 2:] - x[..., :, :-2]
    down = x[..., 2:, :] - x[..., :-2, :]
    smooth_across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    smooth_down = (down[..., :, :-2] + 2 * down[..., :, 1:-1] + down[..., :, 2:]) / 4
    return torch.sqrt((smooth_across.square() + smooth_down.square()) / 2)
