"""Speech and spectral metrics against the packages they stand for: the same signals, to stated tolerances.

Recorded numbers come from throw-away environments, on the signals of `voice` and `at_snr` (tests/helpers/voice.py) and of
`tones` (tests/helpers/sounds.py):

    pip install pysptk==1.0.1 pyworld==0.3.5 scipy    # MCD: WORLD, then pysptk.sp2mc, step by step as versa's mcd_f0.py
    pip install descript-audiotools==0.7.2 torch      # STFT_DAC: MultiScaleSTFTLoss()(AudioSignal(x, rate), …(y, rate))

torchcrepe imports torchaudio, which what is compared here does not use: an empty stand-in serves.
"""

from __future__ import annotations

import math
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest
import torch
from sounds import sound_sample, tones
from voice import at_snr, recording, voice

from tokbench.metrics import pitch_crepe
from tokbench.metrics.cepstral import Mcd, McdVersa, mel_alpha, warping_matrix
from tokbench.metrics.lsd import Lsd
from tokbench.metrics.pesq import PesqNb, PesqWb
from tokbench.metrics.pitch import F0
from tokbench.metrics.pitch_crepe import F0Crepe
from tokbench.metrics.spectral_variants import MelL2Db, StftDac, StftL2Db, htk_filterbank
from tokbench.metrics.stoi import Estoi, Stoi, to_10_khz
from tokbench.metrics.visqol import VisqolAudio, VisqolSpeechLattice, VisqolSpeechPoly
from tokbench.resampler import resample_numpy
from tokbench.types import RowWise


def scored(metric: RowWise, x: np.ndarray, y: np.ndarray, rate: int = 16_000) -> dict[str, float]:
    return dict(metric.row(x[None], y[None], rate))


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, np.ndarray]:
    x = recording()
    return x, at_snr(x, 15)


def test_pesq_is_the_package(speech: tuple[np.ndarray, np.ndarray]) -> None:
    from pesq import pesq

    x, y = speech
    assert scored(PesqWb(), x, y)["pesq_wb"] == pesq(16_000, x, y, "wb")
    assert scored(PesqNb(), x, y)["pesq_nb"] == pesq(16_000, x, y, "nb")
    low = [resample_numpy(s.astype(np.float64), 16_000, 8_000) for s in (x, y)]
    assert scored(PesqNb(rate=8_000), x, y)["pesq_nb_8k"] == pesq(8_000, *low, "nb")
    assert scored(PesqWb(), y, x)["pesq_wb"] > scored(PesqWb(), x, y)["pesq_wb"] + 0.2  # the order of arguments matters


@pytest.mark.parametrize("rate", [8_000, 10_000, 16_000, 24_000, 44_100])
def test_stoi_and_estoi_are_pystoi(rate: int) -> None:
    from pystoi import stoi
    from pystoi.utils import resample_oct

    x = voice(1.5, rate)
    y = at_snr(x, 5)
    clean, noisy = x.astype(np.float64), y.astype(np.float64)
    if rate != 10_000:
        own = to_10_khz(torch.from_numpy(clean)[None], rate)[0].numpy()
        np.testing.assert_allclose(own, resample_oct(clean, 10_000, rate), atol=1e-12, rtol=0)
    batch = sound_sample([x], [y], rate)
    assert Stoi()(batch)["stoi"].item() == pytest.approx(stoi(clean, noisy, rate), abs=1e-6)
    assert Estoi()(batch)["estoi"].item() == pytest.approx(stoi(clean, noisy, rate, extended=True), abs=1e-6)


def test_stoi_removes_the_silence_pystoi_removes() -> None:
    from pystoi import stoi

    x = np.concatenate([np.zeros(6000), voice(0.6), 1e-5 * voice(0.5, seed=2), voice(0.6, seed=3), np.zeros(1001)])
    x = x.astype(np.float32)
    y = at_snr(x, 5)
    for extended, metric in ((False, Stoi()), (True, Estoi())):
        (value,) = metric(sound_sample([x], [y])).values()
        expected = stoi(x.astype(np.float64), y.astype(np.float64), 16_000, extended=extended)
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_rates_without_a_common_divisor_resample_as_octave() -> None:
    from pystoi.utils import resample_oct

    x = voice(0.1, 16_000).astype(np.float64)
    own = to_10_khz(torch.from_numpy(x)[None], 22_051)[0].numpy()
    np.testing.assert_allclose(own, resample_oct(x, 10_000, 22_051), atol=1e-12, rtol=0)


MCD = {16_000: (12.679328305970996, 15.49195829043289), 24_000: (12.220696524508734, 15.587001718146157)}


@pytest.mark.parametrize("rate", MCD)
def test_mcd_is_world_and_sptk(rate: int) -> None:
    x, y = voice(1.0, rate), at_snr(voice(1.0, rate), 10)
    assert scored(Mcd(), x, y, rate)["mcd"] == pytest.approx(MCD[rate][0], abs=1e-4)
    assert scored(McdVersa(), x, y, rate)["mcd_versa"] == pytest.approx(MCD[rate][1], abs=1e-4)


def test_alpha_and_warping_are_sptks() -> None:
    rates = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
    assert [mel_alpha(rate) for rate in rates] == [0.312, 0.357, 0.41, 0.455, 0.466, 0.504, 0.544, 0.554]
    cepstrum, alpha = np.array([0.3, -0.2, 0.11, 0.05]), 0.42
    warped = warping_matrix(4, 60, alpha) @ cepstrum
    omega = np.linspace(0, np.pi, 50)
    bent = omega + 2 * np.arctan2(alpha * np.sin(omega), 1 - alpha * np.cos(omega))
    plain = np.exp(-1j * np.outer(omega, np.arange(4))) @ cepstrum
    np.testing.assert_allclose(np.exp(-1j * np.outer(bent, np.arange(61))) @ warped, plain, atol=1e-9)


def test_visqol_is_the_package(speech: tuple[np.ndarray, np.ndarray]) -> None:
    from visqol import VisqolApi

    x, y = speech
    for metric, settings, rate in (
        (VisqolSpeechLattice(), {"mode": "speech", "use_lattice_model": True}, 16_000),
        (VisqolSpeechPoly(), {"mode": "speech", "use_lattice_model": False}, 16_000),
        (VisqolAudio(), {"mode": "audio"}, 48_000),
    ):
        api = VisqolApi()
        api.create(**settings)
        sides = [resample_numpy(s.astype(np.float64), 16_000, rate) for s in (x, y)]
        expected = api.measure_from_arrays(*sides, rate).moslqo
        (value,) = scored(metric, x, y).values()
        assert value == pytest.approx(expected, abs=1e-6)
    lattice, poly = scored(VisqolSpeechLattice(), x, y), scored(VisqolSpeechPoly(), x, y)
    assert poly["visqol_speech_poly"] > lattice["visqol_speech_lattice"] + 1  # the mapper is another scale


def test_f0_is_the_trackers(speech: tuple[np.ndarray, np.ndarray]) -> None:
    from swift_f0 import SwiftF0

    x, y = (s[:24_000] for s in speech)
    f, g = (SwiftF0(threads=1).detect(s, 16_000, fmin=50, fmax=550) for s in (x, y))
    voiced = [track.confidence >= 0.5 for track in (f, g)]
    both = voiced[0] & voiced[1]
    assert both.sum() > 20
    cents = 1200 * np.log2(f.pitch_hz[both] / g.pitch_hz[both])
    out = scored(F0(), x, y)
    assert out["f0_rmse_cents"] == pytest.approx(np.sqrt(np.mean(cents**2)), rel=1e-9)
    assert out["f0_vuv_wrong"] == (voiced[0] ^ voiced[1]).sum()
    assert out["f0_frames"] == len(f.pitch_hz)


@pytest.fixture
def torchcrepe(monkeypatch: pytest.MonkeyPatch) -> Any:
    stub = types.ModuleType("torchaudio")
    stub.__spec__ = ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", stub)
    module = pytest.importorskip("torchcrepe")
    monkeypatch.setattr(module.convert, "dither", lambda cents: cents)
    return module


def vocos(torchcrepe: Any, signal: np.ndarray, size: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pitch (NaN: unvoiced) and periodicity as the protocol defines them, by torchcrepe and librosa."""
    import librosa

    with torch.inference_mode():
        pitch, periodicity = torchcrepe.predict(
            torch.from_numpy(signal)[None], 16_000, fmin=50.0, fmax=550, model=size, return_periodicity=True, pad=False
        )
    pitch, periodicity = pitch[0].numpy().copy(), periodicity[0].numpy().copy()
    power = np.abs(librosa.stft(signal, n_fft=1024, hop_length=160, center=False)) ** 2
    level = librosa.perceptual_weighting(power, librosa.fft_frequencies(sr=16_000, n_fft=1024)) - 20
    periodicity[level.mean(axis=0) < -60] = 0
    pitch[periodicity < 0.21] = math.nan
    return pitch, periodicity


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_f0_crepe_is_torchcrepe_and_the_protocol_of_vocos(torchcrepe: Any, size: str) -> None:
    seconds = 1.5 if size == "tiny" else 0.3
    x = np.concatenate([np.zeros(3000, np.float32), recording()[4000 : 4000 + int(16_000 * seconds)]])
    y = at_snr(x, 3)
    pitch, periodicity = zip(*(vocos(torchcrepe, s, size) for s in (x, y)), strict=True)
    voiced = [np.isfinite(p) for p in pitch]
    hits = (voiced[0] & voiced[1]).sum()
    assert hits > 10
    assert not voiced[0].all()
    precision, recall = hits / voiced[1].sum(), hits / voiced[0].sum()
    both = voiced[0] & voiced[1]
    cents = 1200 * np.log2(pitch[0][both] / pitch[1][both])
    metric = F0Crepe(size=size)
    name = metric.spec.name
    out = {key: value.item() for key, value in metric(sound_sample([x], [y])).items()}
    gap = np.sqrt(np.mean((periodicity[1] - periodicity[0]) ** 2))
    assert out[f"{name}_periodicity"] == pytest.approx(gap, abs=1e-4)
    assert out[f"{name}_rmse_cents"] == pytest.approx(np.sqrt(np.mean(cents**2)), abs=1e-2)
    assert out[f"{name}_f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-9)
    assert out[f"{name}_frames"] == pitch[0].size


def test_a_weighting_is_librosas() -> None:
    import librosa

    hertz = np.linspace(1, 8000, 200)
    np.testing.assert_allclose(pitch_crepe.a_weighting(hertz), librosa.A_weighting(hertz), atol=1e-9)


STFT_DAC = {(24_000, 1): 1.1623494625091553, (16_000, 1): 1.1942158937454224, (44_100, 2): 1.1591359376907349}


@pytest.mark.parametrize(("rate", "channels"), STFT_DAC)
def test_stft_dac_is_audiotools(rate: int, channels: int) -> None:
    x, y = tones(rate, channels)
    value = StftDac()(sound_sample([x], [y], rate))["stft_dac"].item()
    assert value == pytest.approx(STFT_DAC[rate, channels], rel=1e-4)


def test_l2_distances_are_audiocodecs(speech: tuple[np.ndarray, np.ndarray]) -> None:
    import librosa

    bank = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=80, htk=True, norm=None, dtype=np.float64)
    np.testing.assert_allclose(htk_filterbank(16_000, 1024, 80).numpy(), bank, atol=1e-10)
    x, y = speech
    magnitudes = [
        np.abs(librosa.stft(s.astype(np.float64), n_fft=1024, hop_length=320, pad_mode="reflect")) for s in (x, y)
    ]
    batch = sound_sample([x], [y])
    for metric, bands in ((StftL2Db(), magnitudes), (MelL2Db(), [bank @ m for m in magnitudes])):
        levels = [10 * np.log10(np.maximum(b, 1e-10)) for b in bands]
        expected = np.linalg.norm(levels[0] - levels[1], axis=0).mean()
        (value,) = metric(batch).values()
        assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("max_hz", [0, 7_000])
def test_lsd_is_its_definition(speech: tuple[np.ndarray, np.ndarray], max_hz: int) -> None:
    import librosa

    logs = []
    for side in speech:
        spectrum = librosa.stft(side.astype(np.float64), n_fft=2048, hop_length=512, pad_mode="reflect")
        kept = spectrum[librosa.fft_frequencies(sr=16_000, n_fft=2048) <= (max_hz or 8_000)]
        logs.append(np.log10(np.maximum(np.abs(kept) ** 2, 1e-8)))
    expected = np.sqrt(np.mean((logs[0] - logs[1]) ** 2, axis=0)).mean()
    (value,) = Lsd(max_hz=max_hz)(sound_sample([speech[0]], [speech[1]])).values()
    assert value.item() == pytest.approx(expected, rel=1e-9)
