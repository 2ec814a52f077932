"""Frequency bands share out the whole error, and say which frequencies a reconstruction lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from skimage.filters import sobel
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.metrics.bands import BandPsnr, Edges
from tokbench.metrics.fidelity import Psnr
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, take_row

BANDS, EDGES = BandPsnr(), Edges()


def make(x: Tensor, y: Tensor) -> Sample:
    modality: Modality = {4: "image", 5: "video", 3: "audio"}[x.ndim]  # type: ignore[assignment]
    keys = tuple(str(i) for i in range(x.shape[0]))
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    return Sample(keys, x, y, y, Code(), spec, groups=keys, annotations=({},) * len(keys))


def noisy(*shape: int, seed: int = 0) -> Sample:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g)
    return make(x, (x + 0.1 * torch.randn(shape, generator=g)).clamp(0, 1))


def wave(period: float, size: int = 64) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) + 0.5
    return (0.5 + 0.2 * torch.cos(2 * math.pi * at / period)).float().expand(1, 3, size, size).contiguous()


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 37, 50), (1, 3, 3, 200), (2, 3, 3, 24, 31), (1, 3, 1, 1)])
def test_band_errors_add_to_the_mean_squared_error(shape: tuple[int, ...]) -> None:
    sample = noisy(*shape)
    out = BANDS(sample)
    total = out["mse_low"] + out["mse_mid"] + out["mse_high"]
    np.testing.assert_allclose(total, Psnr()(sample)["mse"], rtol=1e-12)


def test_bands_are_scipys_orthonormal_dct() -> None:
    sample = noisy(1, 3, 40, 56)
    error = dctn((sample.reference - sample.reconstruction)[0].double().numpy(), type=2, norm="ortho", axes=(-2, -1))
    u, v = np.mgrid[0:40, 0:56]
    frequency = np.hypot(u / 80, v / 112)
    masks = {
        "low": frequency < 1 / 16,
        "mid": (frequency >= 1 / 16) & (frequency < 1 / 4),
        "high": frequency >= 1 / 4,
    }
    out = BANDS(sample)
    for name, mask in masks.items():
        part = (error**2 * mask).sum() / error.size
        assert out[f"mse_{name}"].item() == pytest.approx(part, rel=1e-9)
        assert out[f"psnr_{name}"].item() == pytest.approx(-10 * math.log10(part), abs=1e-4)


@pytest.mark.parametrize(("period", "band"), [(32, "low"), (8, "mid"), (2.5, "high")])
def test_a_wave_that_is_lost_shows_in_its_own_band(period: float, band: str) -> None:
    x = wave(period)
    out = {name: values.item() for name, values in BANDS(make(x, torch.full_like(x, 0.5))).items()}
    total = out["mse_low"] + out["mse_mid"] + out["mse_high"]
    assert out[f"mse_{band}"] > 0.95 * total
    assert out[f"psnr_{band}"] == min(out["psnr_low"], out["psnr_mid"], out["psnr_high"])


def test_blur_lowers_and_noise_raises_high_energy() -> None:
    x = noisy(1, 3, 64, 64).reference
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert BANDS(make(x, blurred))["energy_high"].item() < 0.3
    grainy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert BANDS(make(x, grainy))["energy_high"].item() > 1.2
    assert BANDS(make(x, x))["energy_high"].item() == pytest.approx(1.0, abs=1e-12)
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert math.isnan(BANDS(make(flat, flat))["energy_high"].item())
    assert BANDS(make(flat, flat))["psnr_high"].item() == 100.0


def test_sobel_is_skimages_and_gradients_are_numpys() -> None:
    sample = noisy(2, 3, 30, 41)
    out = EDGES(sample)
    for row in range(2):
        x, y = sample.reference[row].double().numpy(), sample.reconstruction[row].double().numpy()
        a, b = (np.stack([sobel(channel)[1:-1, 1:-1] for channel in picture]) for picture in (x, y))
        assert out["edge_mae"][row].item() == pytest.approx(np.abs(a - b).mean(), abs=1e-12)
        assert out["edge_strength"][row].item() == pytest.approx(b.sum() / a.sum(), abs=1e-12)
        steps = [np.abs(np.diff(y - x, axis=axis)) for axis in (-1, -2)]
        gradient = sum(s.sum() for s in steps) / sum(s.size for s in steps)
        assert out["gradient_mae"][row].item() == pytest.approx(gradient, abs=1e-12)


def test_edges_of_nothing() -> None:
    flat = torch.full((1, 3, 8, 8), 0.5)
    out = EDGES(make(flat, flat))
    assert (out["gradient_mae"].item(), out["edge_mae"].item()) == (0.0, 0.0)
    assert math.isnan(out["edge_strength"].item())
    assert all(math.isnan(values.item()) for values in EDGES(make(flat[..., :2], flat[..., :2])).values())
    x = noisy(1, 3, 32, 32).reference
    assert EDGES(make(x, torch.nn.functional.avg_pool2d(x, 3, 1, 1)))["edge_strength"].item() < 0.6


@pytest.mark.parametrize("metric", [BANDS, EDGES])
@pytest.mark.parametrize("shape", [(3, 3, 24, 31), (2, 3, 3, 24, 24)])
def test_rows_do_not_depend_on_the_batch(metric: BandPsnr | Edges, shape: tuple[int, ...]) -> None:
    sample = noisy(*shape, seed=3)
    whole = metric(sample)
    assert set(whole) == {column.name for column in metric.spec.columns}
    for row in range(shape[0]):
        for column, values in metric(take_row(sample, row)).items():
            assert torch.equal(values, whole[column][row : row + 1])
    with pytest.raises(NotApplicable, match="sound"):
        metric(make(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9)))
