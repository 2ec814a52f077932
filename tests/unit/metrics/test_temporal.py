"""Errors of frame differences, on clips whose numbers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.metrics.fidelity import Psnr
from tokbench.metrics.temporal import Temporal
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, take_row

METRIC = Temporal()


def make(x: Tensor, y: Tensor, modality: Modality = "video") -> Sample:
    keys = tuple(str(i) for i in range(x.shape[0]))
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    return Sample(keys, x, y, y, Code(), spec, groups=keys, annotations=({},) * len(keys))


def flat(*levels: float) -> Tensor:
    """Return a clip (1, 3, T, 2, 2) whose frames each have one level."""
    return torch.tensor(levels)[None, None, :, None, None].expand(1, 3, -1, 2, 2).contiguous()


def values(x: Tensor, y: Tensor) -> dict[str, float]:
    return {name: float(value[0]) for name, value in METRIC(make(x, y)).items()}


def test_an_error_that_stands_still_costs_nothing() -> None:
    steps = torch.randint(0, 128, (1, 3, 5, 4, 6), generator=torch.Generator().manual_seed(0))
    x = steps / 256  # so that the shift is exact
    assert values(x, x + 0.25) == {"psnr_temporal": 100.0, "flicker": 0.0, "mse_temporal": 0.0}
    assert values(x, x) == {"psnr_temporal": 100.0, "flicker": 0.0, "mse_temporal": 0.0}


def test_an_error_that_comes_and_goes_counts_both_times() -> None:
    # Reference at 0.5 throughout; the second frame of four is 0.125 too bright: changes of +1/8, -1/8, 0.
    found = values(flat(0.5, 0.5, 0.5, 0.5), flat(0.5, 0.625, 0.5, 0.5))
    assert found["flicker"] == pytest.approx(0.25 / 3, abs=1e-12)
    assert found["mse_temporal"] == pytest.approx(2 / 64 / 3, abs=1e-12)
    assert found["psnr_temporal"] == pytest.approx(10 * math.log10(96), abs=1e-9)


def test_motion_that_the_reconstruction_lacks_is_an_error() -> None:
    # The reference brightens by 1/4 a frame, the reconstruction stands still.
    found = values(flat(0.0, 0.25, 0.5), flat(0.25, 0.25, 0.25))
    assert found == {"psnr_temporal": pytest.approx(10 * math.log10(16)), "flicker": 0.25, "mse_temporal": 0.0625}
    # And motion that both share is none.
    assert values(flat(0.0, 0.25, 0.5), flat(0.25, 0.5, 0.75))["flicker"] == 0.0


def test_independent_errors_cost_three_decibels() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 60, 24, 24, generator=g)
    y = x + 0.05 * torch.randn(x.shape, generator=g)
    gap = float(Psnr()(make(x, y))["psnr"][0]) - values(x, y)["psnr_temporal"]
    assert gap == pytest.approx(10 * math.log10(2), abs=0.05)


def test_it_is_numpys_difference_of_differences() -> None:
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 3, 6, 5, 7, generator=g), torch.rand(2, 3, 6, 5, 7, generator=g)
    found = METRIC(make(x, y))
    change = np.diff(y.double().numpy(), axis=2) - np.diff(x.double().numpy(), axis=2)
    np.testing.assert_allclose(found["flicker"], np.abs(change).mean((1, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(found["psnr_temporal"], -10 * np.log10((change**2).mean((1, 2, 3, 4))), rtol=1e-12)


def test_a_row_does_not_depend_on_its_batch() -> None:
    g = torch.Generator().manual_seed(3)
    whole = make(torch.rand(3, 3, 5, 9, 8, generator=g), torch.rand(3, 3, 5, 9, 8, generator=g))
    found = METRIC(whole)
    for index in range(3):
        for name, value in METRIC(take_row(whole, index)).items():
            assert torch.equal(value[0], found[name][index])


def test_a_single_frame_has_no_value_and_says_why() -> None:
    found = METRIC(make(flat(0.5), flat(0.25)))
    assert set(found) == {column.name for column in METRIC.spec.columns}
    assert all(bool(torch.isnan(value).all()) and value.shape == (1,) for value in found.values())
    assert all(METRIC.undefined[name] == "a single frame does not change" for name in found)


def test_images_are_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="temporal compares video"):
        METRIC(make(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), "image"))
    assert "not defined" in METRIC.spec.mismatch(TokenizerSpec(name="p", modality="image", kind="none"))
