"""What a reader of STOI and ESTOI relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sounds import sound_sample
from voice import at_snr, shifted, voice

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics import stoi
from tokbench.metrics.stoi import Estoi, Stoi

BOTH = (Stoi(), Estoi())


def values(x: np.ndarray, y: np.ndarray, rate: int = 16_000) -> list[float]:
    return [next(iter(metric(sound_sample([x], [y], rate)).values())).item() for metric in BOTH]


def test_identity_gain_and_order_of_snrs() -> None:
    x = voice(1.0)
    assert values(x, x) == pytest.approx([1.0, 1.0], abs=1e-9)
    noisy = [values(x, at_snr(x, snr)) for snr in (0, 10, 20)]
    assert noisy == sorted(noisy)
    assert values(x, 0.5 * at_snr(x, 10)) == pytest.approx(noisy[1], abs=1e-6)


@pytest.mark.parametrize("samples", [0, 1, 255, 256, 257, 409, 410, 411, 2_000, 6_000])
def test_too_short_is_undefined_with_a_reason(samples: int) -> None:
    x = voice(1.0)[:samples]
    assert all(math.isnan(value) for value in values(x, x))
    assert "fewer than 30 frames" in Stoi.undefined["stoi"]
    assert "fewer than 30 frames" in Estoi.undefined["estoi"]


def test_thirty_frames_are_enough() -> None:
    # At 10 kHz: 31 frames of 256, hop 128, of which pystoi drops the one that ends with the signal, twice.
    x = (0.1 * np.random.RandomState(0).randn(5_000)).astype(np.float32)  # loud throughout: no frame is removed
    frames = 31
    enough = (frames + 1) * 128 + 1
    assert math.isfinite(values(x[:enough], x[:enough], 10_000)[0])
    assert math.isnan(values(x[: enough - 1], x[: enough - 1], 10_000)[0])


def test_silence() -> None:
    x, silent = voice(1.0), np.zeros(16_000, np.float32)
    assert all(math.isnan(value) for value in values(silent, x))
    assert values(x, silent) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_any_batch_gives_the_same_bits() -> None:
    clean = [voice(1.2, seed=seed) for seed in range(4)]
    clean[2][2_000:9_000] = 0  # rows keep different numbers of frames
    noisy = [at_snr(x, 5, seed) for seed, x in enumerate(clean)]
    for metric in BOTH:
        (whole,) = metric(sound_sample(clean, noisy)).values()
        assert whole.dtype == torch.float64
        for size in (1, 3):
            parts = [
                next(iter(metric(sound_sample(clean[i : i + size], noisy[i : i + size])).values()))
                for i in range(0, 4, size)
            ]
            assert torch.equal(torch.cat(parts), whole)


def test_the_batched_path_of_an_accelerator_agrees() -> None:
    clean = [voice(1.2, seed=seed) for seed in range(3)]
    clean[1][2_000:9_000] = 0
    clean[2][:] = 0
    noisy = [at_snr(voice(1.2, seed=seed), 5) for seed in range(3)]
    x, y = (torch.from_numpy(np.stack(side)).double() for side in (clean, noisy))
    together = stoi._third_octaves(x, y, 16_000)
    for score in (stoi._stoi, stoi._estoi):
        alone = torch.cat([score(*stoi._third_octaves(x[i : i + 1], y[i : i + 1], 16_000)) for i in range(3)])
        assert alone[:2].isfinite().all()
        assert alone[2].isnan()
        torch.testing.assert_close(score(*together), alone, atol=1e-12, rtol=0, equal_nan=True)


def test_both_share_their_front_end() -> None:
    x = voice(0.8)
    batch = sound_sample([x], [at_snr(x, 5)])
    Stoi()(batch)
    kept = dict(batch.memo)
    Estoi()(batch)
    assert batch.memo == kept != {}


@pytest.mark.parametrize("lag", [8, -37, 480])
def test_aligned_is_what_is_left_without_the_delay(lag: int) -> None:
    x = voice(1.5)
    y = at_snr(x, 25)
    early, late = (x[:-lag], y[:-lag]) if lag > 0 else (x[-lag:], y[-lag:])
    raw = values(x, shifted(y, lag))
    for metric, column, without in zip(
        (stoi.stoi_aligned(), stoi.estoi_aligned()), ("stoi", "estoi"), raw, strict=True
    ):
        moved = metric(sound_sample([x, x], [shifted(y, lag), y]))[f"{column}_aligned"]
        (plain,) = (Stoi if column == "stoi" else Estoi)()(sound_sample([early], [late])).values()
        assert moved[0].item() == plain.item()
        if abs(lag) > 100:
            assert moved[0].item() > without + 0.2
        assert moved[1].item() == values(x, y)[column == "estoi"]
        assert metric.spec.name == f"{column}_aligned"


def test_channels_are_averaged_and_bad_input_is_named() -> None:
    x = voice(0.8)
    y = at_snr(x, 5)
    stereo = [np.stack([side + 0.1, side - 0.1]) for side in (x, y)]
    assert values(*stereo) == pytest.approx(values(x, y), abs=1e-5)
    with pytest.raises(NotApplicable, match="tokenizer of image"):
        Stoi()(sound_sample([x], [x], modality="image"))
    with pytest.raises(UsageError, match="sample rate"):
        Stoi()(sound_sample([x], [x], rate=None))
