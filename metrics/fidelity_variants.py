"""PSNR and SSIM as particular projects publish them, bugs included: one separately named metric each.

Each reproduces a table; none is a better measure than `psnr` and `ssim`, and no two are comparable. What a protocol
decides otherwise (crop, rounding) stays the suite's: run them under `rounding = "round"`.

| metric | what differs | published by |
|---|---|---|
| `psnr_y` | luma 0.299 R + 0.587 G + 0.114 B | pyiqa `psnr(test_y_channel=True)` and super-resolution tables |
| `psnr_red` | red channel only | ReVQ: its colour space name has no branch in pyiqa |
| `psnr_float` | the decoder's output clamped, not rounded | VidTok, BSQ-ViT |
| `psnr_recon_truncated` | the reconstruction cut down to 8 bits, the reference exact | what truncated files cost on their own |
| `psnr_both_truncated` | both cut down after a float32 trip through [-1, 1] | SEED-Voken, WeTok |
| `psnr_batch` | one MSE a batch of 8 | FlowMo (its own batch size) |
| `ssim_uniform` | 7x7 uniform window, sample covariance (scikit-image's defaults) | NVIDIA TokenBench |
| `ssim_range2` | the same with `data_range=2` on [0, 1]: inflated | LlamaGen and at least fifteen descendants |
| `ssim_both_truncated` | 7x7 uniform on signals cut down as in `psnr_both_truncated` | SEED-Voken |
| `ssim_reflect` | Gaussian, full map over reflected borders | torchmetrics, MaskBit, DC-AE |
| `ssim_signed` | that on [-1, 1] with a range of 2, not rounded | LightningDiT (VA-VAE) |
| `ssim_y` | luma of 8 bits, Gaussian, negative contrast counts as 0 | pyiqa `ssim`: VQGAN-LC, ReVQ |

Not offered: SSIM or PSNR with a range inferred from each batch (VTBench): such a number depends on the batch and cannot be
stated without it. `psnr_pooled` of the metric `psnr` is torchmetrics' global PSNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._options import require_positive_integer
from ._probe import CAP, decibels, mse
from ._rows import by_rows, checked_pair, sum_behind
from .ssim import blur, gaussian, no_value

Pair = tuple[Tensor, Tensor]
Read = Callable[[Sample], Pair]
"""Returns what a project compares, (B, C, [T,] H, W) each, from the batch."""

_K1, _K2 = 0.01, 0.03
_LUMA = (0.299, 0.587, 0.114)


class PsnrVariant:
    """PSNR per image or clip of what `read` returns, of range 1, at most 100 dB. Built by the functions below."""

    undefined: Mapping[str, str] = {}

    def __init__(self, name: str, read: Read, description: str, reference: str) -> None:
        self._read = read
        self.spec = MetricSpec(
            name=name,
            modalities=("image", "video"),
            columns=(Column(name, "dB", True, description, atol=1e-6, decimals=2),),
            summary=f"PSNR, {description}",
            reference=reference,
            protocol={"data_range": 1.0, "cap": CAP},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: one column, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        checked_pair(self.spec.name, sample)
        return {self.spec.name: decibels(mse(*self._read(sample)))}


class BatchPsnr:
    """PSNR of the MSE over whole batches of 8 images in key order, then the mean over images of their batch's value.

    FlowMo's `evaluate.py` computes it so, with its own batch size; it lies between the mean of images and the pooled PSNR.
    A batch here is eight consecutive rows of the result, so the number depends on no machine.

    Args:
        batch: Rows a batch.

    Raises:
        UsageError: `batch` is not a positive integer.
    """

    def __init__(self, *, batch: int = 8) -> None:
        require_positive_integer("psnr_batch", "batch", batch)
        self._batch = batch
        self.undefined: Mapping[str, str] = {}
        self.spec = MetricSpec(
            name="psnr_batch",
            modalities=("image", "video"),
            columns=(
                Column("psnr_batch", "dB", True, f"batches of {batch} in key order", 1e-6, 2, "corpus"),
                Column("psnr_batch_mse", "", None, "of a row", 1e-9, 6, level=False),
                Column("psnr_batch_values", "", None, "values compared in a row", 0.0, 0, level=False),
            ),
            summary="PSNR over whole batches, as FlowMo computes it",
            reference="kylesargent/FlowMo flowmo/evaluate.py",
            protocol={"batch": batch, "order": "key", "cap": CAP},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: what `summarise` needs of each row, (B,) float64."""
        x, y = checked_pair("psnr_batch", sample)
        error = mse(x, y)
        return {"psnr_batch_mse": error, "psnr_batch_values": torch.full_like(error, x[0].numel())}

    def summarise(self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]) -> dict[str, float | None]:  # noqa: ARG002
        """Return `psnr_batch`; rows without a value are left out before batches are cut."""
        pairs = [
            (error, count)
            for error, count in zip(rows["psnr_batch_mse"], rows["psnr_batch_values"], strict=True)
            if error is not None and count is not None
        ]
        scores = []
        for start in range(0, len(pairs), self._batch):
            batch = pairs[start : start + self._batch]
            error = math.fsum(e * n for e, n in batch) / math.fsum(n for _, n in batch)
            scores += [CAP if error == 0 else min(CAP, -10 * math.log10(error))] * len(batch)
        return {"psnr_batch": math.fsum(scores) / len(scores) if scores else None}


@dataclass(frozen=True)
class Form:
    """One published form of SSIM.

    Attributes:
        taps: Of the window along each axis; they sum to 1.
        data_range: What the project calls the range; the constants are (0.01 range)² and (0.03 range)².
        sample_covariance: Variances are divided by n - 1 of the window, as scikit-image does by default.
        reflect: Borders are reflected, so that the map is as large as the image; else only whole windows count.
        positive: Negative contrast-structure values count as 0.
    """

    taps: tuple[float, ...]
    data_range: float = 1.0
    sample_covariance: bool = False
    reflect: bool = False
    positive: bool = False


class SsimVariant:
    """SSIM in a stated form: mean over the map, then over channels; video: mean over frames. Built by the functions below."""

    def __init__(self, name: str, read: Read, form: Form, description: str, reference: str) -> None:
        self._read, self._form = read, form
        window = len(form.taps)
        self.undefined: Mapping[str, str] = {name: f"an image side is shorter than the window of {window} px"}
        self.spec = MetricSpec(
            name=name,
            modalities=("image", "video"),
            columns=(Column(name, "", True, description, atol=1e-6),),
            summary=f"SSIM, {description}",
            reference=reference,
            protocol={
                "window": window, "uniform": form.taps[0] == form.taps[window // 2], "data_range": form.data_range,
                "sample_covariance": form.sample_covariance, "region": "reflect" if form.reflect else "valid",
            },
        )  # fmt: skip

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: one column, (B,) float64; NaN where a side is shorter than the window.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ.
        """
        checked_pair(self.spec.name, sample)
        x, y = self._read(sample)
        if min(x.shape[-2:]) < len(self._form.taps):
            return {self.spec.name: no_value(x)}

        def score(a: Tensor, b: Tensor) -> Tensor:
            scores = similarity(_planes(a), _planes(b), self._form).reshape(a.shape[0], -1)
            return sum_behind(scores, 1) / scores.shape[1]

        return {self.spec.name: by_rows(score, x, y)}


def similarity(x: Tensor, y: Tensor, form: Form) -> Tensor:
    """Return the mean SSIM of each pair of planes, (N, H, W) float64 -> (N,) float64, computed in float64."""
    half, count = len(form.taps) // 2, len(form.taps) ** 2
    if form.reflect:
        x, y = (F.pad(p, (half, half, half, half), mode="reflect") for p in (x, y))
    c1, c2 = (_K1 * form.data_range) ** 2, (_K2 * form.data_range) ** 2
    mx, my = blur(x, form.taps), blur(y, form.taps)
    unbias = count / (count - 1) if form.sample_covariance else 1.0
    variance = unbias * (blur(x * x, form.taps) - mx * mx + blur(y * y, form.taps) - my * my)
    covariance = unbias * (blur(x * y, form.taps) - mx * my)
    structure = (2 * covariance + c2) / (variance + c2)
    if form.positive:
        structure = structure.clamp(min=0)
    ssim = (2 * mx * my + c1) / (mx * mx + my * my + c1) * structure
    return sum_behind(ssim, 1) / ssim[0].numel()


def psnr_y() -> PsnrVariant:
    """PSNR of luma, 0.299 R + 0.587 G + 0.114 B of full range, not rounded.

    pyiqa `psnr(test_y_channel=True)`. Tables that use the studio range of BT.601 (219 of 255 levels; MATLAB, BasicSR) are
    exactly 20 log10(255 / 219) = 1.32 dB higher.
    """
    return PsnrVariant("psnr_y", _luma, "luma", "pyiqa psnr(test_y_channel=True)")


def psnr_red() -> PsnrVariant:
    """PSNR of the red channel alone, which is what ReVQ's evaluator reports as PSNR."""
    return PsnrVariant("psnr_red", _red, "red channel only", "Neur-IO/ReVQ src/xvq/evaluator/evaluator.py")


def psnr_float() -> PsnrVariant:
    """PSNR of the decoder's own output, clamped and not rounded to 8 bits."""
    return PsnrVariant("psnr_float", _unrounded, "decoder output not rounded", "microsoft/VidTok; BSQ-ViT")


def psnr_recon_truncated() -> PsnrVariant:
    """PSNR of the reconstruction truncated to 8 bits against the exact reference."""
    return PsnrVariant("psnr_recon_truncated", _recon_truncated, "reconstruction truncated", "numpy: floor(255 x)")


def psnr_both_truncated() -> PsnrVariant:
    """PSNR with both sides truncated to 8 bits after a trip through [-1, 1] in float32.

    The trip `v / 127.5 - 1` and back brings 95 of the 256 grey levels of the reference out one too low.
    """
    return PsnrVariant(
        "psnr_both_truncated", _both_truncated, "both truncated to 8 bits", "TencentARC/SEED-Voken evaluation_image.py"
    )


def psnr_batch(*, batch: int = 8) -> BatchPsnr:
    """PSNR over whole batches, see `BatchPsnr`."""
    return BatchPsnr(batch=batch)


def ssim_uniform() -> SsimVariant:
    """SSIM with a 7x7 uniform window and sample covariance: scikit-image's defaults, `data_range=1`."""
    return SsimVariant(
        "ssim_uniform", _rounded, Form(_UNIFORM, sample_covariance=True), "7x7 uniform", "skimage structural_similarity"
    )


def ssim_range2() -> SsimVariant:
    """SSIM of signals in [0, 1] with `data_range=2`: LlamaGen's, 0.02 to 0.09 above the one with the right range."""
    return SsimVariant(
        "ssim_range2",
        _rounded,
        Form(_UNIFORM, data_range=2.0, sample_covariance=True),
        "7x7 uniform, range 2 on [0, 1]",
        "FoundationVision/LlamaGen tokenizer/tokenizer_image/reconstruction_vq_ddp.py",
    )


def ssim_both_truncated() -> SsimVariant:
    """SSIM with a 7x7 uniform window of signals truncated as in `psnr_both_truncated`."""
    return SsimVariant(
        "ssim_both_truncated",
        _both_truncated,
        Form(_UNIFORM, sample_covariance=True),
        "7x7 uniform, both truncated to 8 bits",
        "TencentARC/SEED-Voken evaluation_image.py",
    )


def ssim_reflect() -> SsimVariant:
    """SSIM with the Gaussian 11/1.5 window, the map as large as the image over reflected borders."""
    return SsimVariant(
        "ssim_reflect",
        _rounded,
        Form(gaussian("ssim_reflect", 11, 1.5), reflect=True),
        "Gaussian, reflected borders, full map",
        "torchmetrics StructuralSimilarityIndexMeasure(data_range=1)",
    )


def ssim_signed() -> SsimVariant:
    """SSIM on [-1, 1] with a range of 2, Gaussian 11/1.5 over reflected borders, the decoder's output not rounded."""
    return SsimVariant(
        "ssim_signed",
        _signed,
        Form(gaussian("ssim_signed", 11, 1.5), data_range=2.0, reflect=True),
        "Gaussian, reflected borders, on [-1, 1]",
        "hustvl/LightningDiT evaluate_tokenizer.py: torchmetrics data_range=(-1, 1)",
    )


def ssim_y() -> SsimVariant:
    """SSIM of 8-bit luma, Gaussian 11/1.5 inside the image, negative contrast-structure values counted as 0."""
    return SsimVariant(
        "ssim_y",
        _luma_8bit,
        Form(gaussian("ssim_y", 11, 1.5), positive=True),
        "8-bit luma, Gaussian",
        "pyiqa ssim(test_y_channel=True)",
    )


_UNIFORM = (1 / 7,) * 7


def _rounded(sample: Sample) -> Pair:
    return checked_pair("a variant", sample)


def _unrounded(sample: Sample) -> Pair:
    x, y = checked_pair("a variant", sample)
    return x, sample.raw.to(y.device).clamp(0, 1)


def _recon_truncated(sample: Sample) -> Pair:
    x, y = _unrounded(sample)
    return x, (y * 255.0).floor() / 255.0


def _both_truncated(sample: Sample) -> Pair:
    x, y = _recon_truncated(sample)
    # What the data loader does: uint8 / 127.5 - 1 in float64, stored as float32; then back, in float32.
    signed = ((x.double() * 255.0).round() / 127.5 - 1.0).float()
    return ((signed + 1.0) / 2.0 * 255.0).floor() / 255.0, y


def _signed(sample: Sample) -> Pair:
    x, y = _unrounded(sample)
    return x.double() * 2 - 1, y.double() * 2 - 1


def _red(sample: Sample) -> Pair:
    x, y = _rounded(sample)
    return x[:, :1], y[:, :1]


def _luma(sample: Sample) -> Pair:
    x, y = _rounded(sample)
    return _y(x), _y(y)


def _luma_8bit(sample: Sample) -> Pair:
    x, y = _luma(sample)
    return (x * 255.0).round() / 255.0, (y * 255.0).round() / 255.0


def _y(x: Tensor) -> Tensor:
    red, green, blue = (x[:, k : k + 1].double() * weight for k, weight in enumerate(_LUMA))
    return red + green + blue


def _planes(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:]).to(torch.float64)
