from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import pytorch_msssim
import torch
import torchmetrics.functional.image as tm
from pictures import picture_sample
from skimage.metrics import structural_similarity
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics import ssim as ssim_module
from tokbench.metrics.ssim import MsSsim, Ssim


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth pictures with some texture and copies with noise that grows from row to row, at levels k / 255."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.rand(*shape[:-2], 7, 7, generator=g).reshape(-1, 1, 7, 7)
    smooth = torch.nn.functional.interpolate(rough, size=shape[-2:], mode="bicubic").reshape(shape)
    x = (smooth + torch.randn(shape, generator=g) * 0.03).clamp(0, 1)
    strength = torch.linspace(0.01, 0.3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    y = (x + torch.randn(shape, generator=g) * strength).clamp(0, 1)
    return (x * 255).round() / 255, (y * 255).round() / 255


def exact_window(window: int, sigma: float) -> Tensor:
    """The Gaussian in float64: pytorch_msssim makes its own in float32, which moves its scores by up to 2e-6."""
    taps = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    return (taps / taps.sum()).repeat(3, 1, 1, 1)


def page(size: int) -> tuple[Tensor, Tensor]:
    """A white page with thin black strokes, and its copy one level darker in places: where float32 variances cancel."""
    x = torch.ones(1, 3, size, size)
    x[..., 20:22, 10:-10] = 0
    x[..., 40:-40, 31] = 0
    g = torch.Generator().manual_seed(3)
    y = x - (torch.rand(x.shape, generator=g) < 0.1).float() / 255
    return x, y.clamp(0, 1)


def skimage_cut(x: Tensor, y: Tensor) -> float:
    _, full = structural_similarity(
        x.double().numpy(), y.double().numpy(), data_range=1.0, channel_axis=0, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    return float(full[:, 5:-5, 5:-5].mean())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 3, 48, 61), (2, 3, 11, 30), (1, 3, 300, 301), (2, 3, 256, 256)])
def test_ssim_is_skimage_and_pytorch_msssim(shape: tuple[int, ...]) -> None:
    x, y = pair(*shape)
    mine = Ssim()(picture_sample(x, y))["ssim"]
    assert mine.dtype == torch.float64
    if shape[-2] > 11:
        skimage = [skimage_cut(a, b) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(mine, skimage, atol=1e-7, rtol=0)
    exact = pytorch_msssim.ssim(x.double(), y.double(), data_range=1.0, size_average=False, win=exact_window(11, 1.5))
    np.testing.assert_allclose(mine, exact, atol=1e-7, rtol=0)
    as_shipped = pytorch_msssim.ssim(x, y, data_range=1.0, size_average=False)
    np.testing.assert_allclose(mine, as_shipped, atol=5e-6, rtol=0)
    assert mine.max() - mine.min() > 0.05 or len(mine) == 1


def test_ssim_is_torchmetrics_inside_its_border() -> None:
    x, y = pair(2, 3, 64, 64)
    _, full = tm.structural_similarity_index_measure(
        y.double(), x.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    np.testing.assert_allclose(
        Ssim()(picture_sample(x, y))["ssim"], full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-6, rtol=0
    )


def test_a_white_page_keeps_its_digits_in_float32() -> None:
    x, y = page(200)
    mine = Ssim()(picture_sample(x, y))["ssim"].item()
    exact = skimage_cut(x[0], y[0])
    assert mine == pytest.approx(exact, abs=1e-7)
    assert abs(pytorch_msssim.ssim(x, y, data_range=1.0).item() - exact) > 1e-5  # the usual form in float32
    multi = MsSsim()(picture_sample(x, y))["ms_ssim"].item()
    theirs = pytorch_msssim.ms_ssim(x.double(), y.double(), data_range=1.0, win=exact_window(11, 1.5)).item()
    assert multi == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize("shape", [(2, 3, 161, 176), (1, 3, 181, 203), (3, 3, 192, 192)])
def test_ms_ssim_is_pytorch_msssim(shape: tuple[int, ...]) -> None:
    x, y = pair(*shape)
    mine = MsSsim()(picture_sample(x, y))["ms_ssim"]
    exact = pytorch_msssim.ms_ssim(
        x.double(), y.double(), data_range=1.0, size_average=False, win=exact_window(11, 1.5)
    )
    np.testing.assert_allclose(mine, exact, atol=1e-7, rtol=0)
    as_shipped = pytorch_msssim.ms_ssim(x, y, data_range=1.0, size_average=False)
    np.testing.assert_allclose(mine, as_shipped, atol=5e-6, rtol=0)


def test_ms_ssim_counts_negative_terms_as_zero() -> None:
    x, _ = pair(1, 3, 176, 176)
    theirs = pytorch_msssim.ms_ssim(x.double(), 1 - x.double(), data_range=1.0, size_average=False)
    mine = MsSsim()(picture_sample(x, 1 - x))["ms_ssim"]
    assert mine.item() == theirs.item() == 0.0
    assert Ssim()(picture_sample(x, 1 - x))["ssim"].item() < 0


def test_video_is_the_mean_over_frames() -> None:
    x, y = pair(2, 3, 3, 165, 170)
    flat = [v.movedim(2, 1).reshape(-1, 3, 165, 170) for v in (x, y)]
    for metric in (Ssim(), MsSsim()):
        name = metric.spec.name
        frames = metric(picture_sample(*flat))[name].reshape(2, 3)
        np.testing.assert_allclose(metric(picture_sample(x, y))[name], frames.mean(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", [Ssim(), MsSsim()], ids=["ssim", "ms_ssim"])
def test_identical_pairs_score_one_exactly(metric: Ssim | MsSsim) -> None:
    x, _ = pair(2, 3, 176, 180)
    assert metric(picture_sample(x, x.clone()))[metric.spec.name].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("metric", "side", "says"), [(Ssim(), 10, "window of 11 px"), (MsSsim(), 160, "161 px")], ids=["ssim", "ms_ssim"]
)
def test_too_small_is_undefined_with_its_reason(metric: Ssim | MsSsim, side: int, says: str) -> None:
    name = metric.spec.name
    x, y = pair(2, 3, side, 200)
    assert metric(picture_sample(x, y))[name].isnan().all()
    assert says in metric.undefined[name]
    x, y = pair(2, 3, side + 1, 200)
    assert metric(picture_sample(x, y))[name].isfinite().all()


@pytest.mark.parametrize(
    ("metric", "shape"),
    [
        (Ssim(), (8, 3, 120, 131)),  # large enough that element-wise operations are split over threads
        (Ssim(), (8, 3, 3, 40, 33)),
        (MsSsim(), (8, 3, 163, 165)),
        (MsSsim(), (3, 3, 2, 161, 162)),
    ],
)
def test_rows_have_the_same_bits_in_any_batch_and_thread_count(
    metric: Ssim | MsSsim, shape: tuple[int, ...], threads: None
) -> None:
    x, y = pair(*shape)
    found = []
    for count, size in ((1, 1), (1, 3), (1, 8), (2, 8)):
        torch.set_num_threads(count)
        parts = [
            metric(picture_sample(a, b))[metric.spec.name] for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
        found.append(torch.cat(parts))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("metric", [Ssim(), MsSsim()], ids=["ssim", "ms_ssim"])
def test_blocks_and_whole_batches_score_the_same(metric: Ssim | MsSsim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators take many rows and planes in one block; here the same code does so on CPU."""
    x, y = pair(3, 3, 161, 165)
    name = metric.spec.name
    expected = metric(picture_sample(x, y))[name]
    monkeypatch.setattr(ssim_module, "_CPU_BLOCK", 500)
    assert torch.equal(metric(picture_sample(x, y))[name], expected)

    def one_block(a: Tensor, height: int) -> Iterator[tuple[slice, slice]]:
        yield slice(0, a.shape[0]), slice(0, height)

    monkeypatch.setattr(ssim_module, "_blocks", one_block)
    monkeypatch.setattr(ssim_module, "by_rows", lambda function, a, b: function(a, b))
    assert torch.equal(metric(picture_sample(x, y))[name], expected)


def test_other_windows_are_part_of_the_protocol() -> None:
    x, y = pair(2, 3, 64, 64)
    metric = Ssim(window=7, sigma=1.0, k1=0.02, k2=0.05)
    theirs = pytorch_msssim.ssim(
        x.double(), y.double(), data_range=1.0, size_average=False, win=exact_window(7, 1.0), K=(0.02, 0.05)
    )
    np.testing.assert_allclose(metric(picture_sample(x, y))["ssim"], theirs, atol=1e-7, rtol=0)
    assert metric.spec.protocol["window"] == 7
    assert metric.spec.protocol != Ssim().spec.protocol
    assert "7/1" in metric.spec.columns[0].description


@pytest.mark.parametrize("make_metric", [Ssim, MsSsim])
def test_wrong_options_and_shapes_are_errors(make_metric: type[Ssim] | type[MsSsim]) -> None:
    for bad in ({"window": 10}, {"window": -1}, {"sigma": 0.0}, {"k1": 0.0}, {"k2": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            make_metric(**bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one shape"):
        make_metric()(picture_sample(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21)))
    with pytest.raises(NotApplicable, match="sound"):
        make_metric()(picture_sample(torch.zeros(1, 1, 20), torch.zeros(1, 1, 20)))
