"""BD-rate against cases whose answer is known."""

from __future__ import annotations

import pytest

from tokbench.bdrate import bd_rate

CURVE = [(0.1, 25.0), (0.2, 28.0), (0.4, 31.0), (0.8, 33.5)]


def test_a_curve_against_itself_and_scaled() -> None:
    assert bd_rate(CURVE, CURVE) == pytest.approx(0)
    assert bd_rate(CURVE, [(2 * rate, quality) for rate, quality in CURVE]) == pytest.approx(100)
    assert bd_rate(CURVE, [(0.7 * rate, quality) for rate, quality in reversed(CURVE)]) == pytest.approx(-30)


def test_straight_lines_in_log_rate_have_a_closed_form() -> None:
    steep = [(2.0**k, 30.0 + 2 * k) for k in range(4)]
    flat = [(2.0**k, 30.0 + k) for k in range(4)]
    # log2 rate at quality q: (q - 30) / 2 and q - 30; over 30..33 they differ by 0.75 on average
    assert bd_rate(steep, flat) == pytest.approx(100 * (2**0.75 - 1))


def test_what_has_no_answer_gives_none() -> None:
    assert bd_rate(CURVE, CURVE[:2]) is None
    assert bd_rate(CURVE, [(rate, quality + 50) for rate, quality in CURVE]) is None
    assert bd_rate(CURVE, [(0.1, 25.0), (0.2, 24.0), (0.4, 31.0)]) is None
