"""Structural similarity of images and video, single- and multi-scale, in one stated form of the many published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._rows import by_rows, checked_pair, sum_behind

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first (Wang, Simoncelli and Bovik 2003)."""

_CPU_BLOCK = 2**15
_DEVICE_BLOCK = 2**23


class Ssim:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004) of signals in [0, 1].

    Gaussian window, only where it lies inside the image, population variance, mean over pixels, then over R, G and B; video:
    mean over frames. That is `pytorch_msssim.ssim(data_range=1)`, and skimage with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False` once its border is cut off. It is not what skimage computes by default (7x7 uniform
    window: 0.01 higher at 24 dB), nor what LlamaGen and its descendants publish (`data_range=2` on [0, 1]: 0.02 to 0.09
    higher still).

    Args:
        window: Side of the Gaussian window in pixels, odd.
        sigma: Its standard deviation in pixels.
        k1: Stabiliser of the luminance term.
        k2: Stabiliser of the contrast and structure term.

    Raises:
        UsageError: The window is even, or a value is not positive.
    """

    def __init__(self, *, window: int = 11, sigma: float = 1.5, k1: float = 0.01, k2: float = 0.03) -> None:
        self._taps = gaussian("ssim", window, sigma)
        self._c1, self._c2 = _constants("ssim", k1, k2)
        self.undefined: Mapping[str, str] = {"ssim": f"an image side is shorter than the window of {window} px"}
        self.spec = MetricSpec(
            name="ssim",
            modalities=("image", "video"),
            columns=(Column("ssim", "", True, f"Gaussian {window}/{sigma:g}, valid region, RGB", atol=1e-6),),
            summary="Structural similarity",
            reference="pytorch_msssim.ssim; skimage.metrics.structural_similarity (Gaussian, border cut)",
            protocol={"window": window, "sigma": sigma, "k1": k1, "k2": k2, "data_range": 1.0, "region": "valid"},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: `ssim`, (B,) float64; NaN where a side is shorter than the window.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("ssim", sample)
        if min(x.shape[-2:]) < len(self._taps):
            return {"ssim": no_value(x)}

        def score(a: Tensor, b: Tensor) -> Tensor:
            a, b = _planes(a), _planes(b)
            return _mean(similarity(a, b, self._taps, self._c1, self._c2)[0], x)

        return {"ssim": by_rows(score, x, y)}


class MsSsim:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of signals in [0, 1].

    Contrast and structure at five scales and luminance at the coarsest, each to the power of its weight; negative terms count
    as 0; channel by channel, then the mean over R, G and B; video: mean over frames. Scales are made by 2x2 averages; an odd
    side gets a zero row or column on both ends first, as in `pytorch_msssim.ms_ssim(data_range=1)`, which this equals.

    Args:
        window: Side of the Gaussian window in pixels, odd.
        sigma: Its standard deviation in pixels.
        k1: Stabiliser of the luminance term.
        k2: Stabiliser of the contrast and structure term.

    Raises:
        UsageError: The window is even, or a value is not positive.
    """

    def __init__(self, *, window: int = 11, sigma: float = 1.5, k1: float = 0.01, k2: float = 0.03) -> None:
        self._taps = gaussian("ms_ssim", window, sigma)
        self._c1, self._c2 = _constants("ms_ssim", k1, k2)
        self._smallest = (window - 1) * 2 ** (len(WEIGHTS) - 1) + 1
        self.undefined: Mapping[str, str] = {
            "ms_ssim": f"an image side is shorter than the {self._smallest} px that {len(WEIGHTS)} scales need"
        }
        self.spec = MetricSpec(
            name="ms_ssim",
            modalities=("image", "video"),
            columns=(Column("ms_ssim", "", True, f"{len(WEIGHTS)} scales, Gaussian {window}/{sigma:g}, RGB", atol=1e-6),),
            summary="Multi-scale structural similarity",
            reference="pytorch_msssim.ms_ssim",
            protocol={
                "window": window, "sigma": sigma, "k1": k1, "k2": k2,
                "weights": WEIGHTS, "data_range": 1.0, "region": "valid",
            },
        )  # fmt: skip

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: `ms_ssim`, (B,) float64; NaN where a side is too short for five scales (161 px by default).

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        x, y = checked_pair("ms_ssim", sample)
        if min(x.shape[-2:]) < self._smallest:
            return {"ms_ssim": no_value(x)}
        return {"ms_ssim": by_rows(self._score, x, y)}

    def _score(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = _planes(x), _planes(y)
        product = torch.ones(a.shape[0], dtype=torch.float64, device=a.device)
        for scale, weight in enumerate(WEIGHTS):
            if scale:
                odd = [side % 2 for side in a.shape[-2:]]
                a, b = (F.avg_pool2d(p[:, None], 2, padding=odd)[:, 0] for p in (a, b))
            whole, contrast = similarity(a, b, self._taps, self._c1, self._c2)
            last = scale == len(WEIGHTS) - 1
            product = product * (whole if last else contrast).clamp(min=0.0) ** weight
        return _mean(product, x)


def gaussian(metric: str, window: int, sigma: float) -> tuple[float, ...]:
    """Return the taps of a Gaussian of `window` pixels that sum to 1.

    Raises:
        UsageError: The window is even or not positive, or sigma is not positive.
    """
    if window != int(window) or window < 1 or window % 2 == 0:
        raise UsageError(f"{metric}: window is an odd number of pixels, got {window}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(f"{metric}: sigma is a positive number of pixels, got {sigma}")
    middle = window // 2
    weights = [math.exp(-((i - middle) ** 2) / (2 * sigma**2)) for i in range(window)]
    return tuple(weight / math.fsum(weights) for weight in weights)


def similarity(x: Tensor, y: Tensor, taps: tuple[float, ...], c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """Return the mean SSIM and the mean contrast-structure term of each pair of planes.

    Args:
        x: (N, H, W) float32 in [0, 1].
        y: The same shape.
        taps: Of the window, along each axis.
        c1: (K1 * range) ** 2.
        c2: (K2 * range) ** 2.

    Returns:
        Two (N,) float64. Every output pixel is made by element-wise operations in a fixed order and rows are summed in
        float64, so values depend on neither batch, block nor thread count.
    """
    border = len(taps) - 1
    planes, height, width = x.shape[0], x.shape[1] - border, x.shape[2] - border
    rows = torch.empty((2, planes, height), dtype=torch.float64, device=x.device)
    for plane, row in _blocks(x, height):
        source = slice(row.start, row.stop + border)
        maps = _maps(x[plane, source], y[plane, source], taps, c1, c2)
        torch.sum(maps, -1, dtype=torch.float64, out=rows[:, plane, row])
    whole, contrast = sum_behind(rows, 2) / (height * width)
    return whole, contrast


def _maps(x: Tensor, y: Tensor, taps: tuple[float, ...], c1: float, c2: float) -> Tensor:
    """Return SSIM and contrast-structure maps, (2, n, h, w).

    Written with the sum s and the difference d of the pair, both terms are 1 minus a ratio that is small where the pair is
    alike: float32 keeps its digits there, and four blurs do instead of five. s is centred, which leaves its variance.
    """
    parts = x.new_empty((4, *x.shape))
    torch.add(x, y, out=parts[0]).sub_(1.0)
    torch.sub(x, y, out=parts[1])
    torch.mul(parts[:2], parts[:2], out=parts[2:])
    blurred = blur(parts, taps)
    mean_s, mean_d = blurred[0] + 1.0, blurred[1]
    var_s = blurred[2] - blurred[0] * blurred[0]
    var_d = blurred[3] - mean_d * mean_d
    square_d = mean_d * mean_d
    maps = torch.empty((2, *mean_d.shape), dtype=x.dtype, device=x.device)
    torch.div(var_d * -2.0, var_s + var_d + 2.0 * c2, out=maps[1]).add_(1.0)
    luminance = (square_d * -2.0).div_(mean_s * mean_s + square_d + 2.0 * c1).add_(1.0)
    torch.mul(luminance, maps[1], out=maps[0])
    return maps


def blur(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Blur the last two axes of (..., H, W) where the whole window fits, by the taps of `gaussian` or others that sum to 1."""
    # Shifted adds, not a convolution: element-wise, hence the same bits for any shape, and out of reach of TF32.
    for axis in (-2, -1):
        size = x.shape[axis] - len(taps) + 1
        out = x.narrow(axis, 0, size) * taps[0]
        for k, tap in enumerate(taps[1:], start=1):
            out.add_(x.narrow(axis, k, size), alpha=tap)
        x = out
    return x


def _blocks(x: Tensor, height: int) -> Iterator[tuple[slice, slice]]:
    """Cut planes and output rows into blocks: of a size that stays in cache on CPU, of many planes elsewhere."""
    width = x.shape[2]
    if x.device.type == "cpu":
        planes, rows = 1, max(1, _CPU_BLOCK // width)
    else:
        planes, rows = max(1, _DEVICE_BLOCK // (x.shape[1] * width)), height
    for plane in range(0, x.shape[0], planes):
        for row in range(0, height, rows):
            yield slice(plane, min(plane + planes, x.shape[0])), slice(row, min(row + rows, height))


def _planes(x: Tensor) -> Tensor:
    """Return (n, 3, [T,] H, W) as (n * 3 * T, H, W) float32."""
    return x.reshape(-1, *x.shape[-2:]).to(torch.float32)


def _mean(planes: Tensor, x: Tensor) -> Tensor:
    """Return the mean over the planes of each row of a batch shaped like `x`: (n * 3 * T,) -> (n,)."""
    each = math.prod(x.shape[1:-2])
    return sum_behind(planes.reshape(-1, each), 1) / each


def no_value(x: Tensor) -> Tensor:
    """Return NaN for each row of a batch: (B,) float64."""
    return torch.full((x.shape[0],), math.nan, dtype=torch.float64, device=x.device)


def _constants(metric: str, k1: float, k2: float) -> tuple[float, float]:
    if not (math.isfinite(k1) and math.isfinite(k2) and k1 > 0 and k2 > 0):
        raise UsageError(f"{metric}: k1 and k2 are positive numbers, got {k1} and {k2}")
    return k1**2, k2**2
