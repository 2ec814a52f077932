"""What a reader of PESQ relies on: its own length, its failures told, its crash avoided."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from voice import at_snr, recording, voice

from tokbench.errors import MissingExtra, NotApplicable, Undefined, UsageError
from tokbench.metrics.pesq import PesqNb, PesqWb, utterances
from tokbench.types import RowWise

RATE = 16_000


def wb(x: np.ndarray, y: np.ndarray, rate: int | None = RATE) -> float:
    return PesqWb().row(np.atleast_2d(x), np.atleast_2d(y), rate)["pesq_wb"]


def bursts(count: int) -> np.ndarray:
    """`count` tones of 0.35 s with as much silence behind each."""
    rng = np.random.RandomState(0)
    t = np.arange(int(0.35 * RATE)) / RATE
    parts = [0.3 * np.sin(2 * np.pi * (200 + 3 * i) * t) + 0.05 * rng.randn(t.size) for i in range(count)]
    return np.concatenate([np.concatenate([part, np.zeros_like(part)]) for part in parts]).astype(np.float32)


def test_zero_padding_would_change_it() -> None:
    # Why rows come here at their own length: the engine cuts them, and tests/unit/metrics/test_mixed_lengths.py holds it.
    x = recording()
    y = at_snr(x, 25)
    padded = [np.pad(side, (0, 8 * RATE)) for side in (x, y)]
    assert wb(*padded) > wb(x, y) + 0.2


def test_identity_is_the_top_of_the_scale_and_gain_counts_for_nothing() -> None:
    x = voice(2.0)
    y = at_snr(x, 25)
    assert wb(x, x) == pytest.approx(4.644, abs=1e-3)
    assert wb(x, 0.5 * y) == pytest.approx(wb(x, y), abs=5e-3)


def test_channels_are_averaged() -> None:
    x = voice(1.0)
    y = at_snr(x, 25)
    stereo = [np.stack([side + 0.1 * x[::-1], side - 0.1 * x[::-1]]) for side in (x, y)]
    assert wb(*stereo) == pytest.approx(wb(x, y), abs=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (voice(0.2), voice(0.2), "quarter of a second"),
        (np.zeros(RATE, np.float32), voice(1.0), "no utterance"),
        (voice(1.0), np.zeros(RATE, np.float32), "reconstruction is digital silence"),
        (bursts(45), bursts(45), "about 45 utterances"),
    ],
)
def test_a_row_without_a_value_says_why(x: np.ndarray, y: np.ndarray, why: str) -> None:
    with pytest.raises(Undefined, match=why):
        wb(x, y)


def test_utterances_are_counted_where_it_matters_only() -> None:
    assert [utterances(bursts(n).astype(np.float64), RATE) for n in (1, 7, 60)] == [1, 7, 60]
    assert utterances(np.zeros(RATE), RATE) == 0
    assert utterances(np.zeros(0), RATE) == 0
    assert wb(bursts(20), bursts(20)) > 4  # 14 s: cannot hold 50
    assert wb(bursts(30), bursts(30)) > 4  # 21 s: counted, and few enough


def test_rates() -> None:
    x = voice(1.0, 8_000)
    with pytest.raises(NotApplicable, match="16000 Hz or more"):
        wb(x, x, 8_000)
    assert PesqNb().row(x[None], x[None], 8_000)["pesq_nb"] > 4.4
    assert PesqNb(rate=8_000).row(x[None], x[None], 8_000)["pesq_nb_8k"] > 4.4
    with pytest.raises(UsageError, match="8000 or 16000"):
        PesqNb(rate=44_100)
    with pytest.raises(UsageError, match="sample rate"):
        wb(x, x, None)
    with pytest.raises(UsageError, match="one shape"):
        wb(x, x[:-1])


def test_an_absent_package_is_a_state_and_the_spec_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert [column.name for column in PesqWb().spec.columns] == ["pesq_wb"]
    assert PesqNb().spec.name == "pesq_nb"
    assert PesqNb(rate=8_000).spec.name == "pesq_nb_8k"
    assert isinstance(PesqWb(), RowWise)
    with pytest.raises(MissingExtra, match="pesq"):
        wb(voice(0.5), voice(0.5))
