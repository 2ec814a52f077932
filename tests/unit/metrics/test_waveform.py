"""What a reader of SI-SDR, delay and gain relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics.waveform import CAP_DB, SiSdr
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample

RATE = 16_000


def sample(reference: Tensor, reconstruction: Tensor, rate: int | None = RATE, modality: Modality = "audio") -> Sample:
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    keys = tuple(str(i) for i in range(reference.shape[0]))
    return Sample(keys, reference, reconstruction, reconstruction, Code(), spec, sample_rate=rate)


def coloured(samples: int, seed: int = 0, pole: float = 0.883) -> np.ndarray:
    """Noise whose correlation after 8 samples is 0.37, as loud speech has: a shift by 8 takes SI-SDR to -8 dB."""
    drive = np.random.RandomState(seed).randn(samples + 200)
    out = np.zeros_like(drive)
    for i in range(1, len(drive)):
        out[i] = pole * out[i - 1] + drive[i]
    out = out[200:]
    return 0.2 * out / np.abs(out).max()


def noisy(clean: np.ndarray, snr_db: float, seed: int = 1) -> np.ndarray:
    noise = np.random.RandomState(seed).randn(len(clean))
    return clean + noise * np.sqrt((clean**2).sum() / (noise**2).sum() / 10 ** (snr_db / 10))


def row(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_2d(x)).float()[None]


def values(reference: Tensor, reconstruction: Tensor, metric: SiSdr | None = None) -> dict[str, float]:
    return {k: v.item() for k, v in (metric or SiSdr())(sample(reference, reconstruction)).items()}


@pytest.mark.parametrize("shift", [8, -8, 40, -1, 160])
def test_a_shift_is_measured_and_removed(shift: int) -> None:
    long = coloured(RATE + 400)
    decoded = noisy(long, 20.0)
    reference, reconstruction = long[200 : 200 + RATE], decoded[200 - shift : 200 - shift + RATE]
    out = values(row(reference), row(reconstruction))
    assert out["delay"] == shift  # positive: the reconstruction is late
    assert out["si_sdr_aligned"] == pytest.approx(20.0, abs=0.3)
    assert out["si_sdr"] < 8.0
    if abs(shift) == 8:
        assert out["si_sdr"] == pytest.approx(-8.0, abs=1.0)


def test_without_a_shift_raw_and_aligned_agree() -> None:
    clean = coloured(RATE)
    out = values(row(clean), row(noisy(clean, 20.0)))
    assert out["delay"] == 0
    assert out["si_sdr"] == out["si_sdr_aligned"] == pytest.approx(20.0, abs=0.2)


def test_delay_search_stops_at_its_range_and_at_half_the_clip() -> None:
    long = coloured(RATE)
    reference, reconstruction = row(long[400:4400]), row(long[100:4100])  # 300 samples late
    assert values(reference, reconstruction)["delay"] == 300
    assert abs(values(reference, reconstruction, SiSdr(max_delay_ms=10.0))["delay"]) <= 160
    assert values(reference, reconstruction, SiSdr(max_delay_ms=0.0))["delay"] == 0
    first, last = torch.zeros(2, 1, 1, 64)
    first[..., 2], last[..., 50] = 1, 1  # 48 samples late, more than half of the clip
    assert abs(values(first, last)["delay"]) <= 32


def test_periodic_sound_takes_the_smallest_delay() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert values(row(tone), row(tone))["delay"] == 0
    assert values(row(tone), row(noisy(tone, 10.0)))["delay"] == 0
    impulse = np.zeros(1000)
    echo = impulse.copy()
    impulse[500], echo[[495, 505]] = 1, 1
    assert values(row(impulse), row(echo))["delay"] == 5  # exact tie of -5 and 5


def test_gain_tells_a_normalisation_that_was_not_undone() -> None:
    clean = coloured(RATE)
    out = values(row(clean), row(0.5 * noisy(clean, 20.0)))
    assert out["si_sdr"] == pytest.approx(20.0, abs=0.2)
    assert out["gain_db"] == pytest.approx(20 * math.log10(0.5), abs=0.05)
    assert out["level_db"] == pytest.approx(20 * math.log10(0.5) + 10 * math.log10(1.01), abs=0.05)
    unlike = values(row(clean), row(coloured(RATE, seed=5)))
    assert unlike["gain_db"] < -15  # decorrelated: the fit falls, the level does not
    assert abs(unlike["level_db"]) < 2


def test_identical_up_to_gain_offset_and_polarity_is_capped_and_counted() -> None:
    clean = row(coloured(4000))
    for copy in (clean, 0.5 * clean, -clean):
        out = values(clean, copy)
        assert out["si_sdr"] == CAP_DB
        assert out["si_sdr_identical"] == 1.0
    assert values(clean, clean + 0.01 * row(coloured(4000, seed=2)))["si_sdr_identical"] == 0.0


def test_orthogonal_signals_stop_at_minus_the_cap() -> None:
    t = np.arange(RATE) / RATE
    out = values(row(0.5 * np.sin(2 * np.pi * 100 * t)), row(0.5 * np.cos(2 * np.pi * 100 * t)), SiSdr(max_delay_ms=0))
    assert -CAP_DB <= out["si_sdr"] < -80


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_is_undefined_with_a_reason(level: float) -> None:
    clean, silent = row(coloured(2000)), torch.full((1, 1, 2000), level)
    for pair in ((silent, clean), (clean, silent), (silent, silent)):
        out = values(*pair)
        assert all(math.isnan(value) for value in out.values())
        assert all("silent" in SiSdr.undefined[name] for name in out)
    stereo = torch.cat([clean, silent], dim=1)
    assert math.isnan(values(stereo, stereo)["si_sdr"])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 100])
def test_very_short_clips_do_not_crash(length: int) -> None:
    clean = coloured(100)[:length]
    value = values(row(clean), row(clean + 0.01 * np.arange(length) ** 2))["si_sdr"]
    assert math.isnan(value) if length < 2 else math.isfinite(value)


def test_channels_are_averaged_and_share_one_delay() -> None:
    left, right = coloured(RATE), coloured(RATE, seed=3)
    stereo = torch.cat([row(left), row(right)], dim=1)
    other = torch.cat([row(noisy(left, 10.0)), row(noisy(right, 30.0))], dim=1)
    out = values(stereo, other)
    assert out["si_sdr"] == pytest.approx(20.0, abs=0.3)
    each = [values(row(a), row(b))["si_sdr"] for a, b in ((left, noisy(left, 10.0)), (right, noisy(right, 30.0)))]
    assert out["si_sdr"] == pytest.approx(sum(each) / 2, abs=1e-4)


def test_any_batch_gives_the_same_bits() -> None:
    clean = [coloured(3001, seed=s) for s in range(8)]
    reference = torch.cat([row(x) for x in clean])
    reconstruction = torch.cat([row(np.roll(noisy(x, 15.0), s - 4)) for s, x in enumerate(clean)])
    whole = SiSdr()(sample(reference, reconstruction))
    for size in (1, 3):
        parts = [SiSdr()(sample(reference[i : i + size], reconstruction[i : i + size])) for i in range(0, 8, size)]
        for name, column in whole.items():
            assert column.dtype == torch.float64
            assert torch.equal(torch.cat([part[name] for part in parts]), column), name
    assert whole["delay"].tolist() == [float(s - 4) for s in range(8)]


def test_summary_of_delays() -> None:
    metric = SiSdr()
    rows = {"delay": [-8.0, -8.0, None, -7.0, 300.0]}
    assert metric.summarise(rows, ()) == {"delay_median": -7.5, "delay_agreement": 0.75}
    assert metric.summarise({"delay": [None]}, ()) == {"delay_median": None, "delay_agreement": None}


def test_columns_are_the_declared_ones() -> None:
    metric, clean = SiSdr(), row(coloured(500))
    declared = metric.spec.columns
    rows = metric(sample(clean, clean))
    assert set(rows) == {c.name for c in declared if c.where == "row"} == set(SiSdr.undefined)
    summary = metric.summarise({k: v.tolist() for k, v in rows.items()}, ())
    assert set(summary) == {c.name for c in declared if c.where == "corpus"}
    assert SiSdr(max_delay_ms=5.0).spec.protocol != metric.spec.protocol


def test_bad_input_is_named() -> None:
    clean = row(coloured(500))
    with pytest.raises(NotApplicable, match="tokenizer of image"):
        SiSdr()(sample(clean, clean, modality="image"))
    with pytest.raises(UsageError, match="one shape"):
        SiSdr()(sample(clean, clean[..., :-8]))
    with pytest.raises(UsageError, match="sample rate"):
        SiSdr()(sample(clean, clean, rate=None))
    with pytest.raises(UsageError, match="max_delay_ms"):
        SiSdr(max_delay_ms=-1.0)
