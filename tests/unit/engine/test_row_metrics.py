"""Metrics of single rows run in processes; what is read from references is read once; ratios carry n and interval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokbench.data import Item
from tokbench.errors import UsageError
from tokbench.evaluate import evaluate
from tokbench.plan import check_columns
from tokbench.ratios import ratio
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric, build_tokenizer, expand
from tokbench.rowpool import RowPool, row_workers
from tokbench.rows import read_rows
from tokbench.session import Request, run
from tokbench.spec import EvalProtocol, ImagePrepare

HERE = Path(__file__).parent
ERROR, EXTRA, BRIGHT = (f"{HERE / 'row_metrics.py'}:{name}" for name in ("RowError", "RowExtra", "Bright"))


def go(pictures: Path, suite: Path, output: Path, *tokenizers: str, **more: Any) -> dict[str, dict[str, Any]]:
    options: dict[str, Any] = {"metrics": (BRIGHT,), "device": "cpu", "batch_size": 3, "decode_workers": 0, **more}
    request = Request(
        suites=(str(suite),), tokenizers=tokenizers, datasets=(f"folder:{pictures}",), output=output, **options
    )
    return {result["tokenizer"]["name"]: result for result in run(request).results}


def items() -> list[Item]:
    rng = np.random.default_rng(3)
    levels = [5, 120, 200, 90, 10, 220, 128]
    return [
        Item(f"{i}.png", f"{i}.png", rng.integers(0, 30, (3, 32, 32)).astype(np.uint8) + np.uint8(level))
        for i, level in enumerate(levels)
    ]


def scored(pool: RowPool | None) -> dict[str, Any]:
    protocol = EvalProtocol("image", ImagePrepare("native", None))
    metrics = {name: build_metric(name) for name in (ERROR, EXTRA, "psnr")}
    jpeg = build_tokenizer(expand(["jpeg?quality=30"])[0], {})
    result = evaluate(jpeg, items(), metrics, protocol, engine=Engine(), batch_size=2, pool=pool)
    return {"rows": result.rows, "absent": result.absent}


def test_rows_scored_in_other_processes_are_the_rows_scored_here() -> None:
    here = scored(None)
    with RowPool(2) as pool:
        there = scored(pool)
    for a, b in zip(here["rows"], there["rows"], strict=True):
        assert a.key == b.key
        assert a.status == b.status == "ok"
        assert a.values["row_error"] == b.values["row_error"]
        assert a.undefined == b.undefined
        assert a.values["psnr"] == b.values["psnr"]
    assert {row.values["row_process"] for row in here["rows"]} == {float(os.getpid()), None}
    elsewhere = {row.values["row_process"] for row in there["rows"]} - {None}
    assert float(os.getpid()) not in elsewhere
    assert len(elsewhere) >= 1


def test_a_row_without_a_value_says_why_and_an_absent_library_is_a_state() -> None:
    found = scored(None)
    dark = [row for row in found["rows"] if row.values["row_error"] is None]
    assert [row.key for row in dark] == ["0.png", "4.png"]
    assert all(row.undefined["row_error"].startswith("the row is dark: 0.0") for row in dark)
    assert found["absent"][EXTRA].state == "extra absent"
    assert all("row_extra" not in row.values for row in found["rows"])


@pytest.mark.parametrize(("rows", "device", "processes"), [(10, "cuda:0", 1), (5000, "cpu", 64)])
def test_few_rows_or_many_processes_get_no_row_pool(rows: int, device: str, processes: int) -> None:
    assert row_workers(rows, device, processes) == 0


def test_references_are_read_once_for_all_tokenizers(pictures: Path, suite_file: Path, tmp_path: Path) -> None:
    reads = type(build_metric(BRIGHT)).reads  # type: ignore[attr-defined]
    reads.clear()
    first = go(pictures, suite_file, tmp_path / "a", "jpeg?quality=10", shard_size=4)["jpeg?quality=10"]
    keys = {row.key for row in _rows(tmp_path / "a")}
    assert sorted(reads) == sorted(keys)
    second = go(pictures, suite_file, tmp_path / "a", "resize", shard_size=4)["resize"]
    assert len(reads) == len(keys)
    assert second["metrics"]["bright_share"]["value"] == 1.0
    assert 0.5 < first["metrics"]["bright_share"]["value"] < 1.0
    for kept in (tmp_path / "a" / ".cache" / "readings").iterdir():
        kept.write_text("{broken")
    again = go(pictures, suite_file, tmp_path / "a", "resize", shard_size=4, rerun="all")["resize"]
    assert len(reads) == 2 * len(keys)
    assert again["metrics"]["bright_share"] == second["metrics"]["bright_share"]


def test_parts_of_rows_are_kept_with_the_rows(pictures: Path, suite_file: Path, tmp_path: Path) -> None:
    go(pictures, suite_file, tmp_path, "resize")
    details = {row.key: row.details for row in _rows(tmp_path)}
    assert any(details.values())
    for parts in details.values():
        for record in parts.get("bright", ()):
            assert set(record) == {"part", "pixels", "status"}
            assert record["pixels"] > 0


def test_ratio_cells_carry_the_count_below_and_an_interval(pictures: Path, suite_file: Path, tmp_path: Path) -> None:
    cells = go(pictures, suite_file, tmp_path / "a", "jpeg?quality=5")["jpeg?quality=5"]["metrics"]
    rows = [row for row in _rows(tmp_path / "a") if row.status == "ok"]
    kept, all_ = (sum(row.values[name] for row in rows) for name in ("bright_kept", "bright_all"))  # type: ignore[misc]
    assert cells["bright_share"]["value"] == pytest.approx(kept / all_, abs=1e-12)
    assert cells["bright_share"]["n"] == all_
    low, high = cells["bright_share"]["ci95"]
    assert low < cells["bright_share"]["value"] < high
    mean = (cells["bright_share"]["value"] + cells["dark_share"]["value"]) / 2
    assert cells["share"]["value"] == pytest.approx(mean, abs=1e-12)
    split = go(pictures, suite_file, tmp_path / "b", "jpeg?quality=5", shard_size=2, batch_size=1)
    assert split["jpeg?quality=5"]["metrics"]["share"] == cells["share"]


def test_a_ratio_over_nothing_is_undefined() -> None:
    found = ratio({"a": [1.0, None], "b": [0.0, None]}, ["x", "y"], [("a", "b")])
    assert (found.value, found.low, found.n) == (None, None, 0.0)


def test_the_interval_of_a_ratio_resamples_files_not_rows() -> None:
    hits, of = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1.0] * 6
    apart = ratio({"a": hits, "b": of}, list("uvwxyz"), [("a", "b")])
    together = ratio({"a": hits, "b": of}, list("uuuvvv"), [("a", "b")])
    assert apart.value == together.value == 0.5
    assert (together.low, together.high) == (0.0, 1.0)
    assert apart.low is not None
    assert apart.low > 0.0


def test_one_file_alone_has_no_interval() -> None:
    found = ratio({"a": [3.0, 0.0], "b": [4.0, 0.0]}, ["x", "y"], [("a", "b")])
    assert (found.value, found.low, found.high) == (0.75, None, None)


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        of = rng.integers(1, 20, 120)
        hits = rng.binomial(of, 0.7)
        found = ratio(
            {"a": hits.astype(float).tolist(), "b": of.astype(float).tolist()},
            [str(i) for i in range(120)],
            [("a", "b")],
        )
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.7 <= found.high
    assert 180 <= inside <= 199


def _rows(root: Path) -> list[Any]:
    return [row for path in sorted(root.glob("*/*/*/rows.parquet")) for row in read_rows(path)]


def test_one_metric_with_two_sets_of_options_is_refused() -> None:
    specs = [build_metric(BRIGHT).spec, build_metric(BRIGHT).spec]
    with pytest.raises(UsageError, match="'bright' is asked for twice"):
        check_columns(specs)


def test_a_row_that_kills_its_process_costs_rows_and_not_the_run() -> None:
    killer = f"{HERE / 'row_metrics.py'}:RowKiller"
    metric = build_metric(killer)
    protocol = EvalProtocol("image", ImagePrepare("native", None))
    jpeg = build_tokenizer(expand(["jpeg?quality=30"])[0], {})
    with RowPool(1) as pool:
        first = evaluate(jpeg, items(), {killer: metric}, protocol, engine=Engine(), batch_size=1, pool=pool)
        bright = [item for item in items() if item.signal.mean() > 60]
        later = evaluate(jpeg, bright, {killer: metric}, protocol, engine=Engine(), batch_size=1, pool=pool)
    assert all(row.status == "ok" for row in first.rows)
    dark = next(row for row in first.rows if row.key == "0.png")
    assert dark.values["row_killer"] is None
    assert "terminated abruptly" in dark.undefined["row_killer"]
    assert [row.values["row_killer"] for row in later.rows] == [1.0] * len(bright)
