"""Each published variant against the library or formula it comes from, on the same tensors, and golden numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchmetrics.functional.image as tm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics import fidelity_variants as variants
from tokbench.metrics.fidelity import Psnr
from tokbench.metrics.ssim import Ssim
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, PerSample, Sample, take_row

ALL = {
    name: getattr(variants, name)
    for name in (
        "psnr_y", "psnr_red", "psnr_float", "psnr_recon_truncated", "psnr_both_truncated", "psnr_batch", "ssim_uniform",
        "ssim_range2", "ssim_both_truncated", "ssim_reflect", "ssim_signed", "ssim_y",
    )
}  # fmt: skip


def make(x: Tensor, raw: Tensor) -> Sample:
    modality: Modality = {4: "image", 5: "video", 3: "audio"}[x.ndim]  # type: ignore[assignment]
    keys = tuple(str(i) for i in range(x.shape[0]))
    y = (raw.clamp(0, 1) * 255 + 0.5).floor() / 255
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    return Sample(keys, x, y, raw, Code(), spec, groups=keys, annotations=({},) * len(keys))


def pair(*shape: int, seed: int = 0) -> Sample:
    g = torch.Generator().manual_seed(seed)
    rough = torch.rand(*shape[:-2], 7, 7, generator=g).reshape(-1, 1, 7, 7)
    smooth = torch.nn.functional.interpolate(rough, size=shape[-2:], mode="bicubic").reshape(shape)
    x = ((smooth + torch.randn(shape, generator=g) * 0.03).clamp(0, 1) * 255).round() / 255
    strength = torch.linspace(0.02, 0.3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return make(x, x + torch.randn(shape, generator=g) * strength)


IMAGES = pair(3, 3, 48, 61)


def value(name: str, sample: Sample = IMAGES) -> np.ndarray:
    return ALL[name]()(sample)[name].numpy()


def hwc(x: Tensor) -> np.ndarray:
    return x.movedim(0, -1).numpy()


def each(score) -> list[float]:
    s = IMAGES
    return [float(score(x, y, raw)) for x, y, raw in zip(s.reference, s.reconstruction, s.raw, strict=True)]


def test_ssim_uniform_is_what_skimage_does_by_default() -> None:
    theirs = each(lambda x, y, _: structural_similarity(hwc(x), hwc(y), data_range=1.0, channel_axis=-1))
    np.testing.assert_allclose(value("ssim_uniform"), theirs, atol=1e-5)
    bytes_ = each(
        lambda x, y, _: structural_similarity(
            (hwc(x) * 255).round().astype(np.uint8), (hwc(y) * 255).round().astype(np.uint8), channel_axis=-1
        )
    )
    np.testing.assert_allclose(value("ssim_uniform"), bytes_, atol=1e-6)


def test_ssim_range2_is_llamagens_call() -> None:
    theirs = each(lambda x, y, _: structural_similarity(hwc(x), hwc(y), data_range=2.0, channel_axis=-1))
    np.testing.assert_allclose(value("ssim_range2"), theirs, atol=1e-5)
    assert (value("ssim_range2") > value("ssim_uniform")).all()


def test_ssim_reflect_is_torchmetrics() -> None:
    theirs = tm.structural_similarity_index_measure(
        IMAGES.reconstruction, IMAGES.reference, data_range=1.0, reduction="none"
    )
    np.testing.assert_allclose(value("ssim_reflect"), theirs, atol=1e-5)
    bytes_ = tm.structural_similarity_index_measure(
        IMAGES.reconstruction.double() * 255, IMAGES.reference.double() * 255, data_range=(0, 255), reduction="none"
    )
    np.testing.assert_allclose(value("ssim_reflect"), bytes_, atol=1e-9 + 1e-6)
    assert abs(value("ssim_reflect") - Ssim()(IMAGES)["ssim"].numpy()).max() > 1e-4


def test_ssim_signed_is_torchmetrics_on_the_decoders_range() -> None:
    theirs = tm.structural_similarity_index_measure(
        IMAGES.raw.double() * 2 - 1, IMAGES.reference.double() * 2 - 1, data_range=(-1, 1), reduction="none"
    )
    np.testing.assert_allclose(value("ssim_signed"), theirs, atol=1e-6)


def seed_voken(sample: Sample) -> tuple[list[float], list[float]]:
    """The arithmetic of TencentARC/SEED-Voken `evaluation_image.py` and its data loader, step by step."""
    levels = (sample.reference * 255).round().to(torch.uint8).numpy()
    images = torch.from_numpy((levels / 127.5 - 1.0).astype(np.float32))
    output = (sample.raw * 2 - 1).clamp(-1, 1)
    a, b = ((t + 1) / 2 for t in (images, output))
    gt, restored = ((t * 255.0).permute(0, 2, 3, 1).to(dtype=torch.uint8).numpy() for t in (a, b))
    gt, restored = gt.astype(np.float32) / 255.0, restored.astype(np.float32) / 255.0
    psnr = [peak_signal_noise_ratio(x, y) for x, y in zip(gt, restored, strict=True)]
    ssim = [structural_similarity(y, x, data_range=1.0, channel_axis=-1) for x, y in zip(gt, restored, strict=True)]
    return psnr, ssim


def test_both_truncated_is_seed_vokens_arithmetic() -> None:
    psnr, ssim = seed_voken(IMAGES)
    np.testing.assert_allclose(value("psnr_both_truncated"), psnr, atol=1e-3)  # a float32 trip may move single levels
    np.testing.assert_allclose(value("ssim_both_truncated"), ssim, atol=1e-4)


def test_one_sided_truncation_and_no_rounding() -> None:
    cut = each(lambda x, _, raw: peak_signal_noise_ratio(hwc(x), hwc((raw.clamp(0, 1) * 255).floor() / 255)))
    np.testing.assert_allclose(value("psnr_recon_truncated"), cut, atol=1e-4)
    free = each(lambda x, _, raw: peak_signal_noise_ratio(hwc(x), hwc(raw.clamp(0, 1))))
    np.testing.assert_allclose(value("psnr_float"), free, atol=1e-4)


def test_truncating_costs_most_when_both_sides_do_it_on_a_good_reconstruction() -> None:
    x = IMAGES.reference
    good = make(x, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)) * 0.02)
    rounded = Psnr()(good)["psnr"].numpy()
    assert (value("psnr_recon_truncated", good) < rounded).all()
    exact = make(x, x)
    assert value("psnr_recon_truncated", exact).min() == 100.0  # v / 255 * 255 is v
    assert value("psnr_both_truncated", exact).max() < 60.0  # 95 of 256 levels of the reference are one too low


def test_psnr_y_is_pyiqas_formula_and_the_studio_range_a_constant_above_it() -> None:
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    a, b = ((t.double().movedim(1, -1) @ weights) * 255 for t in (IMAGES.reference, IMAGES.reconstruction))
    full = 10 * torch.log10(255**2 / ((a - b).square().mean((1, 2)) + 1e-8))
    np.testing.assert_allclose(value("psnr_y"), full, atol=1e-4)
    studio = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    a, b = (t.double().movedim(1, -1) @ studio + 16 for t in (IMAGES.reference, IMAGES.reconstruction))
    limited = 10 * torch.log10(255**2 / (a - b).square().mean((1, 2)))
    np.testing.assert_allclose(limited - full, 20 * math.log10(255 / 219), atol=1e-3)


def test_psnr_red_is_the_first_channel() -> None:
    theirs = each(lambda x, y, _: peak_signal_noise_ratio(x[0].numpy(), y[0].numpy()))
    np.testing.assert_allclose(value("psnr_red"), theirs, atol=1e-4)


def test_ssim_y_is_pyiqas_formula() -> None:
    def blur(t: Tensor) -> Tensor:
        g = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
        window = torch.outer(g, g)
        return torch.nn.functional.conv2d(t, (window / window.sum())[None, None])

    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    inverted = make(IMAGES.reference, torch.lerp(IMAGES.raw, 1 - IMAGES.reference, 0.6))  # negative contrast values
    for sample in (IMAGES, inverted):
        x, y = (
            ((t.double().movedim(1, -1) @ weights) * 255).round()[:, None]
            for t in (sample.reference, sample.reconstruction)
        )
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        mx, my = blur(x), blur(y)
        cs = (2 * (blur(x * y) - mx * my) + c2) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + c2)
        theirs = ((2 * mx * my + c1) / (mx**2 + my**2 + c1) * cs.relu()).mean((1, 2, 3))
        np.testing.assert_allclose(value("ssim_y", sample), theirs, atol=1e-6)


def test_psnr_batch_is_the_psnr_of_whole_batches_and_lies_between_the_others() -> None:
    sample = pair(5, 3, 24, 24, seed=2)
    metric = variants.psnr_batch(batch=2)
    rows = {name: column.tolist() for name, column in metric(sample).items()}
    mine = metric.summarise(rows, sample.groups)["psnr_batch"]
    scores = [
        peak_signal_noise_ratio(sample.reference[i : i + 2].numpy(), sample.reconstruction[i : i + 2].numpy())
        for i in (0, 0, 2, 2, 4)
    ]
    assert mine == pytest.approx(np.mean(scores), abs=1e-4)
    per_image = Psnr()(sample)
    pooled = Psnr().summarise({k: v.tolist() for k, v in per_image.items()}, sample.groups)["psnr_pooled"]
    assert pooled is not None
    assert mine is not None
    assert pooled < mine < float(per_image["psnr"].mean())
    assert variants.psnr_batch(batch=1).summarise(rows, sample.groups)["psnr_batch"] == pytest.approx(
        float(per_image["psnr"].mean()), abs=1e-9
    )
    assert metric.summarise({"psnr_batch_mse": [None], "psnr_batch_values": [None]}, ["0"])["psnr_batch"] is None
    with pytest.raises(UsageError, match="positive"):
        variants.psnr_batch(batch=0)


def test_golden_grey_levels_that_truncation_moves() -> None:
    """What a float32 trip and truncation make of the 256 grey levels: 63, 95, 0 and 0 of them come out one lower."""
    v = torch.arange(256)

    def moved(back: Tensor) -> int:
        got = back.to(torch.uint8).long()
        assert set((v - got).tolist()) <= {0, 1}
        return int((v != got).sum())

    half = (v.float() / 255 - 0.5) / 0.5  # Normalize(0.5, 0.5)
    assert moved((half + 1) / 2 * 255) == 63
    loader = torch.from_numpy((v.numpy().astype(np.uint8) / 127.5 - 1.0).astype(np.float32))
    assert moved((loader + 1) / 2 * 255) == 95
    assert moved(v.float() / 255 * 255) == 0
    for signed in (half, loader):
        assert moved((127.5 * signed + 128).clamp(0, 255)) == 0

    grey = (v / 255).float().reshape(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    error = 10 ** (-float(variants.psnr_both_truncated()(make(grey, grey))["psnr_both_truncated"]) / 10)
    assert error * 256 * 255**2 == pytest.approx(95, rel=1e-5)  # 95 squared errors of one level


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 3, 24, 31), (2, 3, 2, 24, 24)])
def test_rows_do_not_depend_on_the_batch(name: str, shape: tuple[int, ...]) -> None:
    sample, metric = pair(*shape, seed=4), ALL[name]()
    whole = metric(sample)
    for row in range(shape[0]):
        alone = metric(take_row(sample, row))
        for column, values in whole.items():
            assert values.shape == (shape[0],)
            assert values.dtype == torch.float64
            assert torch.equal(alone[column], values[row : row + 1])


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("ssim")])
def test_a_small_picture_has_no_ssim(name: str) -> None:
    metric: PerSample = ALL[name]()
    out = metric(pair(1, 3, 6, 24))
    assert math.isnan(out[name].item())
    assert name in metric.undefined  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ALL)
def test_sound_and_shapes_that_differ_are_refused(name: str) -> None:
    metric = ALL[name]()
    x = torch.zeros(1, 1, 100)
    with pytest.raises(NotApplicable, match="sound"):
        metric(replace(make(x, x)))
    sample = pair(1, 3, 24, 24)
    with pytest.raises(UsageError, match="shape"):
        metric(replace(sample, reconstruction=sample.reconstruction[..., :-1]))
