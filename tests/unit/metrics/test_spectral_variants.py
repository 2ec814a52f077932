"""What a reader of LSD and of the spectral distances of single projects relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sounds import sound_sample
from voice import at_snr, voice

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics.lsd import Lsd
from tokbench.metrics.spectral_variants import MelL2Db, StftDac, StftL2Db
from tokbench.types import PerSample

METRICS = (Lsd(), Lsd(max_hz=4_000), MelL2Db(), StftL2Db(), StftDac())


def value(metric: PerSample, x: np.ndarray, y: np.ndarray, rate: int = 16_000) -> float:
    return next(iter(metric(sound_sample([x], [y], rate)).values())).item()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.spec.name)
def test_identity_is_zero_more_noise_is_worse_and_gain_counts(metric: PerSample) -> None:
    x = voice(0.5)
    assert value(metric, x, x) == 0
    assert 0 < value(metric, x, at_snr(x, 30)) < value(metric, x, at_snr(x, 10))
    assert value(metric, x, 0.5 * x) > 0
    assert [column.name for column in metric.spec.columns] == [metric.spec.name]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.spec.name)
def test_any_batch_gives_the_same_bits_and_short_clips_a_number(metric: PerSample) -> None:
    clean = [voice(0.2, seed=seed) for seed in range(3)]
    noisy = [at_snr(x, 10) for x in clean]
    (whole,) = metric(sound_sample(clean, noisy)).values()
    alone = [value(metric, x, y) for x, y in zip(clean, noisy, strict=True)]
    assert whole.tolist() == alone
    assert whole.dtype == torch.float64
    assert math.isfinite(value(metric, clean[0][:100], noisy[0][:100]))
    assert value(metric, np.zeros(4_000, np.float32), np.zeros(4_000, np.float32)) == 0


def test_lsd_is_in_decades_of_power_above_its_floor() -> None:
    loud = np.random.RandomState(0).randn(20_000).astype(np.float32)
    assert value(Lsd(), loud, 0.1 * loud) == pytest.approx(2.0, abs=1e-2)
    faint = 1e-7 * loud
    assert value(Lsd(), faint, 0.1 * faint) == 0  # all of it is below the floor


def test_a_band_leaves_out_what_is_above() -> None:
    t = np.arange(16_000) / 16_000
    x = voice(1.0)
    y = (x + 0.1 * np.sin(2 * np.pi * 7_000 * t)).astype(np.float32)
    assert 4 * value(Lsd(max_hz=4_000), x, y) < value(Lsd(), x, y)
    with pytest.raises(UsageError, match="max_hz"):
        Lsd(max_hz=-1)


def test_bad_input_is_named() -> None:
    x = voice(0.2)
    for metric in METRICS:
        with pytest.raises(NotApplicable, match="tokenizer of image"):
            metric(sound_sample([x], [x], modality="image"))
        with pytest.raises(UsageError, match="sample rate"):
            metric(sound_sample([x], [x], rate=None))
