"""Errors of change: what a reconstruction gets wrong from one frame to the next, which errors of single frames do not show."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._probe import CAP, decibels
from ._rows import by_rows, checked_pair, sum_behind

_ONE_FRAME = "a single frame does not change"


class Temporal:
    """PSNR of frame differences, and flicker: the mean absolute error of frame differences; a value a clip.

    With d the difference of a pixel between successive frames, of the reference and of the reconstruction, over all pixels,
    colours and pairs of frames of a clip in [0, 1]:

    | column | rule |
    |---|---|
    | `psnr_temporal` | 10 log10(1 / mean (d' - d)²), in dB, at most 100 |
    | `flicker` | mean of abs(d' - d); 0 is steady |

    d' - d is also how much the error itself changes. So an error that stands still (a blur, a shift of colour) costs nothing
    here, a reconstruction whose errors are independent from frame to frame has about 3 dB less `psnr_temporal` than `psnr`,
    and one whose errors follow the picture has more. The peak is 1, the range of the pixels, so that the two compare; the
    range of differences would add 6 dB. Motion is not compensated: where the picture moves, so do its errors.

    The difference of differences is that of US patent 8,755,613, "Method for measuring flicker", which keeps some of the
    pixels only; here all count. VBench's temporal flickering, the mean absolute d', has no reference and takes motion for it.
    """

    def __init__(self) -> None:
        self.undefined: Mapping[str, str] = {
            "psnr_temporal": _ONE_FRAME,
            "flicker": _ONE_FRAME,
            "mse_temporal": _ONE_FRAME,
        }
        self.spec = MetricSpec(
            name="temporal",
            modalities=("video",),
            columns=(
                Column("psnr_temporal", "dB", True, "PSNR of frame differences, per clip", atol=1e-6, decimals=2),
                Column("flicker", "", False, "mean absolute error of frame differences, in [0, 1]", atol=1e-9),
                Column("mse_temporal", "", False, "mean squared error of frame differences", 1e-12, 6, level=False),
            ),
            summary="Errors of frame differences",
            reference="numpy: np.diff(reconstruction, axis=time) - np.diff(reference, axis=time)",
            protocol={"data_range": 1.0, "cap": CAP},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch of clips: three columns, (B,) float64; NaN where a clip is one frame.

        Raises:
            NotApplicable: No video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("temporal", sample)
        if x.ndim != 5:
            raise NotApplicable(f"temporal compares video; {sample.spec.name} is for images")
        values = x[0].numel() // x.shape[2] * (x.shape[2] - 1)
        sums = (
            by_rows(_changes, x, y) / values if values else torch.full((x.shape[0], 2), torch.nan, dtype=torch.float64)
        )
        return {"psnr_temporal": decibels(sums[:, 0]), "flicker": sums[:, 1], "mse_temporal": sums[:, 0]}


def _changes(x: Tensor, y: Tensor) -> Tensor:
    """Sum the squares and the absolute values of how the error changes: (n, 3, T, H, W) -> (n, 2) float64."""
    change = (y.to(torch.float64) - x.to(torch.float64)).diff(dim=2)
    return torch.stack([sum_behind(change.square(), 1), sum_behind(change.abs_(), 1)], dim=1)
