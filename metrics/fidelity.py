"""Pixel errors of images and video: PSNR with its aggregations told apart, and mean absolute error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._rows import by_rows, checked_pair, sum_behind


class Psnr:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE), of signals in [0, 1], in dB.

    The same errors give several published numbers; each has its column here.

    | column | rule | used by |
    |---|---|---|
    | `psnr` | MSE over a row (an image, a clip over all its frames), then the mean of rows | images: LlamaGen, MaskBit, DC-AE, 1d-tokenizer; clips: BSQ-ViT, LARP |
    | `psnr_frame` | video: PSNR of each frame, mean over frames, mean of rows | VidTok |
    | `psnr_video` | video: MSE over all clips of a file, PSNR, mean of files | NVIDIA TokenBench, where a file is one clip |
    | `psnr_pooled` | MSE over every value of the set, one PSNR | torchmetrics `PeakSignalNoiseRatio`, VTBench |

    The mean of rows is the higher number (rows of one size, below the cap): on 27 photographs 34.0 against 31.6 dB pooled.
    Values are capped at `cap`: a pair without any difference has no finite PSNR, and one level in one value of a 256x256 image is 101 dB already.
    `psnr_identical` counts the pairs without any difference.

    Args:
        cap: Highest value, in dB, of a row, a frame, a file or the set.

    Raises:
        UsageError: `cap` is not a positive number.
    """  # noqa: E501 - a table row cannot be wrapped

    def __init__(self, *, cap: float = 100.0) -> None:
        if not (math.isfinite(cap) and cap > 0):
            raise UsageError(f"psnr: cap is a positive number of dB, got {cap}")
        self.cap = float(cap)
        self.undefined: Mapping[str, str] = {}
        self.spec = MetricSpec(
            name="psnr",
            modalities=("image", "video"),
            columns=(
                Column("psnr", "dB", True, "per image or clip", atol=1e-6, decimals=2),
                Column("psnr_frame", "dB", True, "video: mean over the frames of a clip", atol=1e-6, decimals=2),
                Column("mse", "", False, "mean squared error in [0, 1]", atol=1e-9, decimals=6, level=False),
                Column("psnr_identical", "", None, "1 where no value differs", atol=0.0, decimals=0, level=False),
                Column("psnr_values", "", None, "values compared in a row", atol=0.0, decimals=0, level=False),
                Column("psnr_video", "dB", True, "video: pooled over a file", decimals=2, where="corpus"),
                Column("psnr_pooled", "dB", True, "pooled over the whole set", decimals=2, where="corpus"),
            ),
            summary="Peak signal-to-noise ratio",
            reference="skimage.metrics.peak_signal_noise_ratio(data_range=1); torchmetrics (pooled)",
            protocol={"data_range": 1.0, "cap": self.cap},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch.

        Returns:
            `psnr`, `mse`, `psnr_identical`, `psnr_values` and, for video, `psnr_frame`: each (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("psnr", sample)
        values = x[0].numel()
        frames = x.shape[2] if x.ndim == 5 else 1
        squares = by_rows(_frame_squares, x, y)
        mse = sum_behind(squares, 1) / values
        out = {
            "psnr": self._decibels(mse),
            "mse": mse,
            "psnr_identical": (mse == 0).to(torch.float64),
            "psnr_values": torch.full_like(mse, values),
        }
        if x.ndim == 5:
            out["psnr_frame"] = sum_behind(self._decibels(squares / (values // frames)), 1) / frames
        return out

    def summarise(self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]) -> dict[str, float | None]:
        """Return `psnr_pooled` and, for video, `psnr_video`; rows without a value are left out.

        Args:
            rows: Row columns `mse` and `psnr_values` (and `psnr_frame` for video), in key order.
            groups: The file each row was cut from.
        """
        errors: dict[str, list[tuple[float, float]]] = {}
        for mse, values, group in zip(rows.get("mse", ()), rows.get("psnr_values", ()), groups, strict=True):
            if mse is not None and values is not None:
                errors.setdefault(group, []).append((mse, values))
        out = {"psnr_pooled": self._pooled([pair for pairs in errors.values() for pair in pairs])}
        if any(value is not None for value in rows.get("psnr_frame", ())):
            files = [value for pairs in errors.values() if (value := self._pooled(pairs)) is not None]
            out["psnr_video"] = math.fsum(files) / len(files) if files else None
        return out

    def _pooled(self, pairs: Sequence[tuple[float, float]]) -> float | None:
        count = math.fsum(values for _, values in pairs)
        if not count:
            return None
        mse = math.fsum(mse * values for mse, values in pairs) / count
        return self.cap if mse == 0 else min(self.cap, -10.0 * math.log10(mse))

    def _decibels(self, mse: Tensor) -> Tensor:
        return (-10.0 * torch.log10(mse)).clamp(max=self.cap)


class Mae:
    """Mean absolute error of images and video in [0, 1], per image or clip (over all its frames)."""

    def __init__(self) -> None:
        self.undefined: Mapping[str, str] = {}
        self.spec = MetricSpec(
            name="mae",
            modalities=("image", "video"),
            columns=(Column("mae", "", False, "per image or clip, in [0, 1]", atol=1e-9),),
            summary="Mean absolute error",
            reference="torchmetrics.MeanAbsoluteError",
            protocol={"data_range": 1.0},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: `mae`, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("mae", sample)
        return {"mae": by_rows(_absolute, x, y) / x[0].numel()}


def _frame_squares(x: Tensor, y: Tensor) -> Tensor:
    """Sum squared differences of each frame: (n, 3, [T,] H, W) -> (n, T) float64; an image is one frame."""
    difference = x.to(torch.float64) - y.to(torch.float64)
    squares = difference.mul_(difference)
    if squares.ndim == 4:
        return sum_behind(squares, 1)[:, None]
    return sum_behind(squares.movedim(2, 1), 2)


def _absolute(x: Tensor, y: Tensor) -> Tensor:
    return sum_behind((x.to(torch.float64) - y.to(torch.float64)).abs_(), 1)
