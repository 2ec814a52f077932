"""Which numbers a delay or a gain moves, and which they do not: one sentence at 20 dB, moved and scaled.

Metrics that align (PESQ, ViSQOL, SI-SDR aligned) hold; SI-SDR falls by 15 dB at one sample and below zero at eight; STOI and
ESTOI fall with the milliseconds; spectral distances hardly notice a delay but count a gain.
"""

from __future__ import annotations

import numpy as np
import pytest
from sounds import sound_sample
from voice import at_snr, recording, shifted

from tokbench.metrics.lsd import Lsd
from tokbench.metrics.pesq import PesqWb
from tokbench.metrics.pitch import F0
from tokbench.metrics.spectral import MelDistance
from tokbench.metrics.spectral_variants import MelL2Db, StftDac
from tokbench.metrics.stoi import Estoi, Stoi
from tokbench.metrics.visqol import VisqolSpeechLattice
from tokbench.metrics.waveform import SiSdr

ROW_METRICS = (PesqWb(), VisqolSpeechLattice(), F0())
SAMPLE_METRICS = (Stoi(), Estoi(), SiSdr(), MelDistance(), Lsd(), MelL2Db(), StftDac())
SHIFTS = (1, 8, -8, 40, 160, 480)
GAINS = (0.5, 1.5)


def numbers(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    out: dict[str, float] = {}
    for row_metric in ROW_METRICS:
        out |= row_metric.row(x[None], y[None], 16_000)
    for metric in SAMPLE_METRICS:
        out |= {name: column.item() for name, column in metric(sound_sample([x], [y])).items()}
    return out


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    x = recording("austen-0880")
    y = at_snr(x, 20)
    out = {"identity": numbers(x, x), "aligned": numbers(x, y)}
    out |= {f"{shift:+d}": numbers(x, shifted(y, shift)) for shift in SHIFTS}
    return out | {f"x{gain}": numbers(x, (gain * y).astype(np.float32)) for gain in GAINS}


def moved(table: dict[str, dict[str, float]], row: str, column: str) -> float:
    return table[row][column] - table["aligned"][column]


def test_identity(table: dict[str, dict[str, float]]) -> None:
    same = table["identity"]
    assert same["pesq_wb"] == pytest.approx(4.6439, abs=1e-3)
    assert same["stoi"] == same["estoi"] == pytest.approx(1, abs=1e-9)
    assert same["si_sdr"] == 100
    assert same["visqol_speech_lattice"] > 4.4
    assert all(same[name] == 0 for name in ("mel_dac", "lsd", "mel_l2_db", "stft_dac", "f0_rmse_cents", "f0_vuv_wrong"))


@pytest.mark.parametrize("shift", SHIFTS)
def test_what_aligns_does_not_move(table: dict[str, dict[str, float]], shift: int) -> None:
    row = f"{shift:+d}"
    assert table[row]["delay"] == shift
    assert abs(moved(table, row, "pesq_wb")) < 0.03
    assert abs(moved(table, row, "visqol_speech_lattice")) < 0.02
    assert abs(moved(table, row, "si_sdr_aligned")) < 0.05


def test_raw_si_sdr_collapses_within_samples(table: dict[str, dict[str, float]]) -> None:
    assert table["aligned"]["si_sdr"] == pytest.approx(20, abs=0.5)
    assert moved(table, "+1", "si_sdr") < -9
    assert all(table[row]["si_sdr"] < -4 for row in ("+8", "-8", "+40", "+160", "+480"))


@pytest.mark.parametrize(("column", "at_160", "at_480"), [("stoi", -0.08, -0.3), ("estoi", -0.15, -0.4)])
def test_intelligibility_falls_with_the_milliseconds(
    table: dict[str, dict[str, float]], column: str, at_160: float, at_480: float
) -> None:
    assert all(abs(moved(table, row, column)) < 0.005 for row in ("+1", "+8", "-8"))
    assert moved(table, "+160", column) < at_160
    assert moved(table, "+480", column) < at_480


def test_spectral_distances_and_pitch_hardly_notice_a_few_samples(table: dict[str, dict[str, float]]) -> None:
    for column in ("mel_dac", "lsd", "mel_l2_db", "stft_dac"):
        base = table["aligned"][column]
        assert all(abs(moved(table, row, column)) < 0.01 * base for row in ("+1", "+8", "-8"))
        assert moved(table, "+480", column) > 0.03 * base
    assert all(abs(moved(table, row, "f0_vuv_wrong")) <= 3 for row in ("+1", "+8", "-8", "+40"))
    assert moved(table, "+480", "f0_vuv_wrong") > 5


@pytest.mark.parametrize("gain", GAINS)
def test_gain_counts_in_spectral_distances_only(table: dict[str, dict[str, float]], gain: float) -> None:
    row = f"x{gain}"
    for column, tolerance in (
        ("pesq_wb", 2e-3), ("visqol_speech_lattice", 2e-3), ("stoi", 1e-5), ("estoi", 1e-5), ("si_sdr", 1e-3)
    ):  # fmt: skip
        assert abs(moved(table, row, column)) < tolerance, column
    for column in ("mel_dac", "lsd", "mel_l2_db", "stft_dac"):
        assert abs(moved(table, row, column)) > 0.02 * table["aligned"][column], column
    assert table[row]["level_db"] == pytest.approx(20 * np.log10(gain) + table["aligned"]["level_db"], abs=0.01)
