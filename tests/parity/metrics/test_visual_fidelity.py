from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from pictures import picture_sample
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics import fidelity
from tokbench.metrics.fidelity import Mae, Psnr


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth pictures at levels k / 255 and copies with noise that differs from row to row."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.rand(*shape[:-2], 5, 5, generator=g).reshape(-1, 1, 5, 5)
    x = torch.nn.functional.interpolate(rough, size=shape[-2:], mode="bicubic").clamp(0, 1).reshape(shape)
    strength = torch.linspace(0.01, 0.2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    y = (x + torch.randn(shape, generator=g) * strength).clamp(0, 1)
    return (x * 255).round() / 255, (y * 255).round() / 255


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_psnr_is_skimage_per_image() -> None:
    x, y = pair(5, 3, 40, 56)
    mine = Psnr()(picture_sample(x, y))
    theirs = [
        peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=1) for a, b in zip(x, y, strict=True)
    ]
    assert mine["psnr"].dtype == torch.float64
    np.testing.assert_allclose(mine["psnr"], theirs, atol=1e-9)
    assert set(mine) == {"psnr", "mse", "psnr_identical", "psnr_values"}
    assert len({round(v, 3) for v in theirs}) == 5


def test_psnr_is_skimage_per_clip_and_per_frame() -> None:
    x, y = pair(3, 3, 5, 24, 20)
    mine = Psnr()(picture_sample(x, y))
    xs, ys = x.double().numpy(), y.double().numpy()
    for row in range(3):
        clip = peak_signal_noise_ratio(xs[row], ys[row], data_range=1)
        frames = [peak_signal_noise_ratio(xs[row, :, t], ys[row, :, t], data_range=1) for t in range(5)]
        assert mine["psnr"][row].item() == pytest.approx(clip, abs=1e-9)
        assert mine["psnr_frame"][row].item() == pytest.approx(np.mean(frames), abs=1e-9)
        assert np.mean(frames) > clip  # a mean of logarithms


def test_pooled_psnr_is_torchmetrics_and_below_the_mean_of_images() -> None:
    x, y = pair(6, 3, 32, 32)
    metric = Psnr()
    rows = {name: value.tolist() for name, value in metric(picture_sample(x, y)).items()}
    pooled = metric.summarise(rows, [str(i) for i in range(6)])
    theirs = tm.image.peak_signal_noise_ratio(y.double(), x.double(), data_range=1.0).item()
    assert pooled == {"psnr_pooled": pytest.approx(theirs, abs=1e-5)}  # torchmetrics takes its logarithm in float32
    exact = -10 * math.log10((x.double() - y.double()).square().mean().item())
    assert pooled == {"psnr_pooled": pytest.approx(exact, abs=1e-9)}
    assert np.mean(rows["psnr"]) > theirs + 1


def test_pooled_psnr_weighs_images_by_their_values() -> None:
    metric = Psnr()
    small, large = pair(1, 3, 16, 16, seed=1), pair(1, 3, 64, 48, seed=2)
    parts = [metric(picture_sample(*small)), metric(picture_sample(*large))]
    rows = {name: [part[name].item() for part in parts] for name in parts[0]}
    squares = torch.cat([(a.double() - b.double()).flatten() ** 2 for a, b in (small, large)])
    expected = -10 * math.log10(squares.mean().item())
    assert metric.summarise(rows, ["a", "b"])["psnr_pooled"] == pytest.approx(expected, abs=1e-9)


def test_video_psnr_pools_the_clips_of_a_file_then_means_over_files() -> None:
    metric = Psnr()
    x, y = pair(4, 3, 3, 16, 16)
    rows: dict[str, list[float | None]] = {name: value.tolist() for name, value in metric(picture_sample(x, y)).items()}
    groups = ["b", "a", "b", "a"]
    mse = (x.double() - y.double()).square().flatten(1).mean(1)
    files = [-10 * math.log10(((mse[0] + mse[2]) / 2).item()), -10 * math.log10(((mse[1] + mse[3]) / 2).item())]
    found = metric.summarise(rows, groups)
    assert found["psnr_video"] == pytest.approx(np.mean(files), abs=1e-9)
    assert found["psnr_pooled"] == pytest.approx(-10 * math.log10(mse.mean().item()), abs=1e-9)
    assert found["psnr_pooled"] < found["psnr_video"] < np.mean(rows["psnr"])

    order = [2, 0, 3, 1]
    shuffled = {name: [values[i] for i in order] for name, values in rows.items()}
    assert metric.summarise(shuffled, [groups[i] for i in order]) == found


def test_rows_without_a_value_are_left_out_of_the_pool() -> None:
    metric = Psnr()
    found = metric.summarise({"mse": [0.01, None], "psnr_values": [3.0, None], "psnr_frame": [20.0, None]}, ["a", "b"])
    assert found == {"psnr_pooled": pytest.approx(20.0), "psnr_video": pytest.approx(20.0)}
    nothing = metric.summarise({"mse": [None], "psnr_values": [None], "psnr_frame": [None]}, ["a"])
    assert nothing == {"psnr_pooled": None}


def test_identical_pairs_are_capped_and_counted_never_infinite() -> None:
    x, y = pair(3, 3, 2, 16, 16)
    y[1] = x[1]
    y[2] = x[2]
    y[2, :, 1] = 1 - x[2, :, 1]
    metric = Psnr()
    mine = metric(picture_sample(x, y))
    assert mine["psnr_identical"].tolist() == [0, 1, 0]
    assert mine["psnr"][1] == 100
    assert mine["psnr_frame"][1] == 100
    assert all(torch.isfinite(v).all() for v in mine.values())
    assert mine["psnr_frame"][2] > 50 > mine["psnr"][2]  # one of its two frames is identical
    rows = {name: value[1:2].tolist() for name, value in mine.items()}
    assert metric.summarise(rows, ["a"]) == {"psnr_pooled": 100.0, "psnr_video": 100.0}
    assert Psnr(cap=60)(picture_sample(x, y))["psnr"][1] == 60


def test_one_level_in_one_value_is_not_above_an_identical_pair() -> None:
    x = torch.zeros(1, 3, 256, 256)
    y = x.clone()
    y[0, 0, 0, 0] = 1 / 255
    mine = Psnr()(picture_sample(x, y))
    assert mine["psnr"].item() == 100
    assert mine["psnr_identical"].item() == 0


@pytest.mark.parametrize("shape", [(3, 3, 30, 22), (2, 3, 4, 18, 20)])
def test_mae_is_torchmetrics(shape: tuple[int, ...]) -> None:
    x, y = pair(*shape)
    mine = Mae()(picture_sample(x, y))["mae"]
    theirs = [tm.mean_absolute_error(b.double(), a.double()).item() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 3, 70, 129), (8, 3, 5, 33, 40), (8, 3, 256, 256)])
@pytest.mark.parametrize("metric", [Psnr(), Mae()], ids=["psnr", "mae"])
def test_rows_have_the_same_bits_in_any_batch_and_thread_count(
    metric: Psnr | Mae, shape: tuple[int, ...], threads: None
) -> None:
    x, y = pair(*shape)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        for size in (1, 3, 8):
            parts = [metric(picture_sample(a, b)) for a, b in zip(x.split(size), y.split(size), strict=True)]
            found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@pytest.mark.parametrize("shape", [(5, 3, 24, 20), (5, 3, 4, 24, 20)])
@pytest.mark.parametrize("metric", [Psnr(), Mae()], ids=["psnr", "mae"])
def test_whole_batches_score_the_same(
    metric: Psnr | Mae, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators take many rows in one block; here the same code does so on CPU."""
    x, y = pair(*shape)
    expected = metric(picture_sample(x, y))
    monkeypatch.setattr(fidelity, "by_rows", lambda function, a, b: function(a, b))
    for name, value in metric(picture_sample(x, y)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-13)


def test_strides_do_not_change_a_row() -> None:
    x, y = pair(2, 3, 40, 40)
    last = x.to(memory_format=torch.channels_last), y.to(memory_format=torch.channels_last)
    assert torch.equal(Psnr()(picture_sample(x, y))["psnr"], Psnr()(picture_sample(*last))["psnr"])


@pytest.mark.parametrize("metric", [Psnr(), Mae()], ids=["psnr", "mae"])
def test_what_cannot_be_compared_is_an_error(metric: Psnr | Mae) -> None:
    with pytest.raises(UsageError, match="one shape"):
        metric(picture_sample(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)))
    with pytest.raises(UsageError, match="4 axes"):
        metric(picture_sample(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 8), "image"))
    with pytest.raises(NotApplicable, match="sound"):
        metric(picture_sample(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)))


def test_options_and_columns() -> None:
    with pytest.raises(UsageError, match="cap"):
        Psnr(cap=math.inf)
    metric = Psnr(cap=80)
    assert metric.spec.protocol == {"data_range": 1.0, "cap": 80.0}
    row_columns = {column.name for column in metric.spec.columns if column.where == "row"}
    assert set(metric(picture_sample(*pair(1, 3, 2, 8, 8)))) == row_columns
    assert {column.name for column in metric.spec.columns if column.where == "corpus"} == {"psnr_video", "psnr_pooled"}
