"""What a reader of MCD, F0, CREPE's F0 and ViSQOL relies on."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from sounds import sound_sample
from voice import at_snr, voice

from tokbench.errors import MissingExtra, NotApplicable, Undefined, UsageError
from tokbench.metrics.cepstral import Mcd, McdVersa
from tokbench.metrics.pitch import F0, rmse_cents, voicing_counts
from tokbench.metrics.pitch_crepe import F0Crepe
from tokbench.metrics.visqol import VisqolAudio, VisqolSpeechLattice, VisqolSpeechPoly
from tokbench.types import Reading, RowWise

RATE = 16_000
ROW_METRICS = (
    Mcd(), McdVersa(), F0(), F0(tracker="harvest"), VisqolAudio(), VisqolSpeechLattice(), VisqolSpeechPoly()
)  # fmt: skip


def score(metric: RowWise, x: np.ndarray, y: np.ndarray, rate: int | None = RATE) -> dict[str, float]:
    return dict(metric.row(np.atleast_2d(x), np.atleast_2d(y), rate))


def tone(hertz: float, seconds: float = 0.6) -> np.ndarray:
    t = np.arange(int(RATE * seconds)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * k * hertz * t) / k for k in range(1, 12))).astype(np.float32)


@pytest.mark.parametrize("metric", ROW_METRICS, ids=lambda metric: metric.spec.name)
def test_row_columns_are_the_declared_ones_and_bad_input_is_named(metric: RowWise) -> None:
    assert isinstance(metric, RowWise)
    x = voice(1.1)
    declared = [column.name for column in metric.spec.columns if column.where == "row"]
    assert sorted(score(metric, x, at_snr(x, 20))) == sorted(declared)
    for column in metric.spec.columns:
        assert set(column.ratio or ()) <= set(declared)
    with pytest.raises(UsageError, match="one shape"):
        score(metric, x, x[:-8])
    with pytest.raises(UsageError, match="sample rate"):
        score(metric, x, x, None)
    with pytest.raises(Undefined, match="shorter than"):
        score(metric, x[:500], x[:500])


@pytest.mark.parametrize("metric", [VisqolAudio(), VisqolSpeechPoly()], ids=lambda metric: metric.spec.name)
def test_visqol_says_when_a_clip_holds_no_patch(metric: RowWise) -> None:
    x = voice(0.6)
    with pytest.raises(Undefined, match="patch"):
        score(metric, x, x)


@pytest.mark.parametrize("metric", [m for m in ROW_METRICS if not isinstance(m, F0)], ids=lambda m: m.spec.name)
def test_silence_is_undefined(metric: RowWise) -> None:
    x, silent = voice(0.6), np.zeros(9_600, np.float32)
    with pytest.raises(Undefined, match="reference is digital silence"):
        score(metric, silent, x)
    with pytest.raises(Undefined, match="reconstruction is digital silence"):
        score(metric, x, silent)


def test_mcd_is_blind_to_gain_and_versas_is_not() -> None:
    x = voice(0.5)
    y = at_snr(x, 20)
    assert score(Mcd(), x, x) == {"mcd": 0.0}
    assert score(Mcd(), x, 0.5 * y)["mcd"] == pytest.approx(score(Mcd(), x, y)["mcd"], abs=1e-4)
    assert score(McdVersa(), x, 0.5 * x)["mcd_versa"] == pytest.approx(10 * math.sqrt(2) * math.log10(2), rel=1e-3)


def test_mcd_versa_brings_high_rates_to_24_khz() -> None:
    x = voice(0.3, 48_000)
    assert 0 < score(McdVersa(), x, at_snr(x, 20), 48_000)["mcd_versa"] < 40


@pytest.mark.parametrize("tracker", ["swift-f0", "harvest"])
def test_a_semitone_is_a_hundred_cents(tracker: str) -> None:
    metric = F0(tracker=tracker)
    out = score(metric, tone(150), tone(150 * 2 ** (1 / 12)))
    assert out[f"{metric.spec.name}_rmse_cents"] == pytest.approx(100, abs=12)
    assert out[f"{metric.spec.name}_vuv_wrong"] <= 3


def test_unvoiced_frames_are_errors_of_voicing_not_of_pitch() -> None:
    x = tone(150)
    half = x.copy()
    half[len(x) // 2 :] = 0
    out = score(F0(), x, half)
    assert out["f0_rmse_cents"] < 60  # frames with a zero on one side would add thousands
    assert out["f0_vuv_wrong"] == pytest.approx(out["f0_frames"] / 2, abs=4)


def test_voicing_counts_make_error_and_f1() -> None:
    x = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)
    y = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    counts = voicing_counts("f0", x, y)
    assert counts == {"f0_vuv_wrong": 2, "f0_frames": 8, "f0_vuv_hits_twice": 6, "f0_vuv_voiced": 8}
    precision, recall = 3 / 4, 3 / 4
    f1 = 2 * precision * recall / (precision + recall)
    assert counts["f0_vuv_hits_twice"] / counts["f0_vuv_voiced"] == f1
    assert math.isnan(rmse_cents(np.array([100.0, 0.0]), np.array([0.0, 100.0])))
    assert rmse_cents(np.array([100.0, 0.0]), np.array([200.0, 90.0])) == pytest.approx(1200)


def test_nothing_voiced_leaves_pitch_undefined_and_voicing_counted() -> None:
    hiss = (0.05 * np.random.RandomState(0).randn(9_600)).astype(np.float32)
    out = score(F0(), hiss, np.zeros(9_600, np.float32))
    assert math.isnan(out["f0_rmse_cents"])
    assert "voiced on both sides" in F0.undefined["f0_rmse_cents"]
    assert out["f0_frames"] == 37


def test_crepe_reads_references_once_and_rows_alone() -> None:
    metric = F0Crepe(size="tiny")
    assert isinstance(metric, Reading)
    clean = [voice(0.4, seed=seed) for seed in range(2)]
    noisy = [at_snr(x, 5) for x in clean]
    batch = sound_sample(clean, noisy)
    whole = metric(batch)
    kept = {name: dict(of) for name, of in batch.readings.items()}
    assert set(kept["f0_crepe_tiny"]) == set(batch.keys)
    again = sound_sample([np.zeros_like(x) for x in clean], noisy)  # references are not looked at once they were read
    again.readings.update(kept)
    for name, column in metric(again).items():
        assert column.tolist() == whole[name].tolist()
        alone = [metric(sound_sample([x], [y]))[name].item() for x, y in zip(clean, noisy, strict=True)]
        assert column.tolist() == alone
    same = {name: column.item() for name, column in metric(sound_sample(clean[:1], clean[:1])).items()}
    assert same["f0_crepe_tiny_rmse_cents"] == same["f0_crepe_tiny_periodicity"] == same["f0_crepe_tiny_vuv_wrong"] == 0
    assert same["f0_crepe_tiny_f1"] == 1
    assert set(whole) == {column.name for column in metric.spec.columns if column.where == "row"}


def test_crepe_without_frames_or_voice_is_undefined() -> None:
    metric = F0Crepe(size="tiny")
    short = {k: v.item() for k, v in metric(sound_sample([voice(0.05)], [voice(0.05)])).items()}
    assert math.isnan(short["f0_crepe_tiny_periodicity"])
    silent = np.zeros(4_000, np.float32)
    out = {k: v.item() for k, v in metric(sound_sample([silent], [silent])).items()}
    undefined = {name for name, value in out.items() if math.isnan(value)}
    assert undefined == {"f0_crepe_tiny_rmse_cents", "f0_crepe_tiny_f1"}
    assert undefined <= set(F0Crepe.undefined)


def test_options_and_rates() -> None:
    with pytest.raises(UsageError, match="tracker"):
        F0(tracker="praat")
    with pytest.raises(UsageError, match="full or tiny"):
        F0Crepe(size="small")
    x = voice(0.6, 8_000)
    with pytest.raises(NotApplicable, match="16000 Hz or more"):
        score(VisqolSpeechLattice(), x, x, 8_000)
    assert F0(tracker="harvest").spec.name == "f0_harvest"
    assert F0Crepe().spec.name == "f0_crepe"


@pytest.mark.parametrize(
    ("metric", "package"),
    [(Mcd(), "pyworld"), (McdVersa(), "pyworld"), (F0(tracker="harvest"), "pyworld"), (F0(), "swift_f0")],
)
def test_an_absent_package_is_a_state(metric: RowWise, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokbench.metrics import pitch

    pitch._swift_detector.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=package.replace("_", "-")):
        score(metric, voice(0.5), voice(0.5))
    assert metric.spec.columns


@pytest.mark.parametrize(("module", "package"), [("visqol", "visqol-python"), ("numba", "numba")])
def test_an_absent_visqol_is_a_state(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokbench.metrics import visqol

    visqol._api.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=f"needs the package {package}"):
        score(VisqolSpeechPoly(), voice(0.6), voice(0.6))


def test_the_lattice_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    from tokbench.metrics import visqol

    visqol._api.cache_clear()
    x = voice(1.1)
    assert score(VisqolSpeechLattice(), x, x)["visqol_speech_lattice"] > 3
    assert capfd.readouterr() == ("", "")
