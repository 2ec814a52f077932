"""Options and optional packages, as every metric that has some treats them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tokbench.errors import MissingExtra, UsageError, install_command
from tokbench.metrics._optional import optional
from tokbench.metrics.latency import Latency
from tokbench.metrics.robustness import Idempotence, ShiftStability


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), float("inf"), "three", True])
def test_a_count_that_is_none_is_refused(value: object) -> None:
    for build in (
        lambda: ShiftStability(pixels=value),  # type: ignore[arg-type]
        lambda: Idempotence(rounds=value),  # type: ignore[arg-type]
        lambda: Latency(probes=value),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="is a positive integer, got"):
            build()


def test_what_a_package_says_at_import_stays_out_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talks_at_import.py").write_text("import warnings\nwarnings.warn('old', FutureWarning)\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optional("talks_at_import", "the metric").value == 3


def test_an_absent_package_names_itself_and_the_extra() -> None:
    with pytest.raises(MissingExtra, match="the metric needs the package pip-name") as absent:
        optional("no_such_module_of_tokbench", "the metric", package="pip-name", extra="ocr")
    assert absent.value.fix == install_command("ocr")
