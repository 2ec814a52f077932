"""Batch size and shard count are not part of a number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tokbench.session import Request, run


def metrics_of(request: Request) -> dict[str, object]:
    report = run(request)
    assert report.failed == 0
    assert report.pending == 0
    return {result["tokenizer"]["name"]: (result["metrics"], result["samples"]) for result in report.results}


def request(tmp_path: Path, pictures: Path, suite_file: Path, names: tuple[str, ...], batch: int, size: int) -> Request:
    return Request(
        suites=(str(suite_file),), tokenizers=names, datasets=(str(pictures),), output=tmp_path / f"b{batch}-s{size}",
        batch_size=batch, shard_size=size, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_batches_of_1_3_8_and_1_2_5_shards_give_the_same_bits(tmp_path, pictures, suite_file, mine) -> None:
    names = ("resize", "jpeg?quality=30", "webp?quality=30", "tokbench-tiny-image", mine)
    ten = {"limit": 10}  # 10, 5 and 2 files a shard: 1, 2 and 5 shards
    whole = metrics_of(replace(request(tmp_path, pictures, suite_file, names, 1, 10), **ten))
    assert {"psnr", "ssim", "mae"} <= set(whole["mine"][0])
    for batch, size, shards in ((3, 10, 1), (8, 10, 1), (1, 5, 2), (3, 5, 2), (8, 2, 5), (3, 2, 5)):
        asked = replace(request(tmp_path, pictures, suite_file, names, batch, size), **ten)
        assert metrics_of(asked) == whole, (batch, size)
        assert len(list(asked.output.glob("mine/*/*/shards/*/shard.json"))) == shards


@pytest.mark.slow
def test_a_network_whose_spec_says_close_stays_within_its_tolerance(tmp_path, pictures, suite_file, hostile) -> None:
    from tokbench.rows import read_rows

    def rows(batch: int, size: int) -> dict[str, float]:
        run(request(tmp_path, pictures, suite_file, (f"{hostile}:Close",), batch, size))
        (path,) = (tmp_path / f"b{batch}-s{size}").glob("*/*/*/rows.parquet")
        return {row.key: row.values["mae"] for row in read_rows(path)}

    alone = rows(1, 11)
    for batch, size in ((3, 11), (8, 3)):
        other = rows(batch, size)
        assert other.keys() == alone.keys()
        # One 8-bit level is the least an image of 32x32 can move by: batch_atol moves few values over a rounding edge.
        assert max(abs(other[key] - alone[key]) for key in alone) < 1e-5


def test_rows_stand_once_and_in_key_order(tmp_path, pictures, suite_file, mine) -> None:
    from tokbench.rows import read_rows

    run(request(tmp_path, pictures, suite_file, (mine,), 3, 2))
    (path,) = (tmp_path / "b3-s2").glob("*/*/*/rows.parquet")
    keys = [row.key for row in read_rows(path)]
    assert keys == sorted(set(keys))
    assert len(keys) == 11
    result = json.loads((path.parent / "result.json").read_text())
    assert result["metrics"]["psnr"]["n"] == 11
