"""What a reader of the spectral distances relies on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics.spectral import MelDistance, MultiResolutionStft, mel_filterbank
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample

METRICS = [(MultiResolutionStft(), "mrstft"), (MelDistance(), "mel_dac")]
both = pytest.mark.parametrize(("metric", "column"), METRICS, ids=["mrstft", "mel"])


def sample(
    reference: Tensor, reconstruction: Tensor, rate: int | None = 24_000, modality: Modality = "audio"
) -> Sample:
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    keys = tuple(str(i) for i in range(reference.shape[0]))
    return Sample(keys, reference, reconstruction, reconstruction, Code(), spec, sample_rate=rate)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@both
def test_identity_is_zero_and_more_distortion_is_more_distance(metric, column) -> None:
    reference, distortion = noise(1, 1, 6000), noise(1, 1, 6000, seed=1)
    scores = [metric(sample(reference, reference + a * distortion))[column].item() for a in (0.0, 0.01, 0.1, 1.0)]
    assert scores[0] == 0.0
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


@both
def test_a_small_shift_hardly_matters_and_a_gain_does(metric, column) -> None:
    long = noise(1, 1, 8000)
    reference, late, quiet = long[..., 8:], long[..., :-8], 0.25 * long[..., 8:]
    assert metric(sample(reference, quiet))[column] > 0.5
    tone = 0.1 * torch.sin(torch.arange(8000) * 0.3)[None, None]
    shifted = metric(sample(tone[..., 8:], tone[..., :-8]))[column].item()
    opposite = metric(sample(tone, noise(1, 1, 8000)))[column].item()
    assert shifted < 0.2 * opposite
    assert metric(sample(reference, late))[column] > 0


@both
def test_any_batch_gives_the_same_bits(metric, column) -> None:
    reference, reconstruction = noise(8, 2, 5003), noise(8, 2, 5003, seed=1)
    whole = metric(sample(reference, reconstruction))[column]
    assert whole.dtype == torch.float64
    assert whole.shape == (8,)
    for size in (1, 3):
        parts = [
            metric(sample(reference[i : i + size], reconstruction[i : i + size]))[column] for i in range(0, 8, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


@both
@pytest.mark.parametrize("length", [1, 2, 120, 256, 257, 511, 512, 513, 1024, 1025, 1500])
def test_clips_shorter_than_a_window_are_defined(metric, column, length: int) -> None:
    reference, reconstruction = noise(1, 1, length), noise(1, 1, length, seed=1)
    assert metric(sample(reference, reference))[column].item() == 0.0
    value = metric(sample(reference, reconstruction))[column].item()
    assert math.isfinite(value)
    assert value > 0


def test_silence() -> None:
    silent, loud = torch.zeros(1, 1, 4000), noise(1, 1, 4000)
    mrstft, mel = MultiResolutionStft(), MelDistance()
    assert math.isnan(mrstft(sample(silent, loud))["mrstft"].item())
    assert math.isnan(mrstft(sample(silent, silent))["mrstft"].item())
    assert "silence" in MultiResolutionStft.undefined["mrstft"]
    assert mrstft(sample(loud, silent))["mrstft"].item() > 1
    assert mel(sample(silent, silent))["mel_dac"].item() == 0.0
    assert mel(sample(silent, loud))["mel_dac"].item() > 1


def test_the_mel_distance_depends_on_the_rate_and_the_stft_does_not() -> None:
    reference, reconstruction = noise(1, 1, 6000), noise(1, 1, 6000, seed=1)
    pairs = [sample(reference, reconstruction, rate) for rate in (16_000, 44_100)]
    assert MelDistance()(pairs[0])["mel_dac"] != MelDistance()(pairs[1])["mel_dac"]
    assert MultiResolutionStft()(pairs[0])["mrstft"] == MultiResolutionStft()(pairs[1])["mrstft"]


def test_mel_filters_are_triangles_of_area_one() -> None:
    bank = mel_filterbank(24_000, 2048, 40)
    assert bank.shape == (40, 1025)
    assert bool((bank >= 0).all())
    area = bank.sum(dim=1) * 24_000 / 2048  # Slaney's norm: each integrates to 1 over Hz
    torch.testing.assert_close(area, torch.ones(40, dtype=torch.float64), atol=0.02, rtol=0)
    peaks = bank.argmax(dim=1)
    assert bool((peaks[1:] > peaks[:-1]).all())


@both
def test_columns_are_the_declared_ones(metric, column) -> None:
    out = metric(sample(noise(2, 1, 3000), noise(2, 1, 3000)))
    assert set(out) == {c.name for c in metric.spec.columns} == {column}
    assert set(metric.undefined) <= set(out)


@both
def test_bad_input_is_named(metric, column) -> None:
    x = noise(1, 1, 3000)
    with pytest.raises(NotApplicable, match="tokenizer of video"):
        metric(sample(x, x, modality="video"))
    with pytest.raises(UsageError, match="one shape"):
        metric(sample(x, x[..., :-1]))
    with pytest.raises(UsageError, match="sample rate"):
        metric(sample(x, x, rate=0))
