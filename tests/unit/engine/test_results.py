"""What a store holds: valid against the published schema, free of this machine, never a NaN, never a mixed board."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import jsonschema
import pytest

import tokbench
from tokbench.leaderboard import boards
from tokbench.renderings import to_csv, to_markdown
from tokbench.rows import Row, read_rows, statistic, write_rows
from tokbench.session import Request, run
from tokbench.store import Store, slug, write_json
from tokbench.summarise import public_uri

SCHEMA = json.loads((Path(tokbench.__file__).parent / "result.schema.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory, mine, hostile, pictures, suite_file):
    request = Request(
        suites=(str(suite_file),), tokenizers=(mine, "resize", f"{hostile}:FailsOnDark", f"{hostile}:WrongShape", "taesd"),
        datasets=(str(pictures),), output=tmp_path_factory.mktemp("store"), device="cpu", offline=True,
    )  # fmt: skip
    report = run(request)
    return list(report.results)


def test_every_result_validates_and_a_wrong_one_does_not(results) -> None:
    assert {result["status"] for result in results} >= {"complete", "failed"}
    for result in results:
        jsonschema.validate(result, SCHEMA)
    broken = copy.deepcopy(results[0])
    broken["metrics"]["psnr"]["value"] = None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_results_hold_no_folder_of_this_machine(results, pictures) -> None:
    text = json.dumps(results)
    assert str(pictures.parent) not in text
    assert str(Path.home()) not in text
    assert str(Path(tokbench.__file__).parent) not in text


def test_identical_pairs_are_counted_not_infinite(results) -> None:
    resize = next(r for r in results if r["tokenizer"]["name"] == "resize")
    assert resize["metrics"]["psnr"]["value"] == 100.0
    assert resize["metrics"]["psnr_identical"]["value"] == 1.0


def test_nan_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"value": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_rows_survive_parquet_with_their_reasons(tmp_path: Path) -> None:
    rows = [
        Row("a", "a", values={"psnr": 31.25, "pesq": None}, undefined={"pesq": "silence"}, notes=("exif rotated",)),
        Row("b", "b", "failed", "truncated"),
    ]
    write_rows(tmp_path / "rows.parquet", rows)
    assert read_rows(tmp_path / "rows.parquet") == rows


def test_statistics_do_not_depend_on_order_and_match_scipy() -> None:
    from scipy import stats

    values = [0.1 * i**1.5 + (-1) ** i for i in range(40)]
    found = statistic([*values, None])
    assert found == statistic([None, *reversed(values)])
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 40, scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.n == 40
    assert statistic([None]).value is None
    assert statistic([3.0]).low is None


def test_boards_never_mix_protocols_or_metric_versions(results) -> None:
    other = copy.deepcopy(results[0])
    other["protocol"]["hash"] = "0" * 64
    assert len(boards([*results, other])) == 2
    newer = copy.deepcopy(next(r for r in results if r["tokenizer"]["name"] == "resize"))
    newer["tokenizer"]["name"] = "newer"
    newer["protocol"]["metrics"]["psnr"]["version"] = 2
    (board,) = boards([*results, newer])
    rows = {row["tokenizer"]["name"]: row for row in board.rows}
    assert "psnr" in rows["newer"]["metrics"]
    assert "psnr" not in rows["resize"]["metrics"]
    assert "ssim" in rows["resize"]["metrics"]
    assert any(note.startswith("resize: psnr has another version") for note in board.notes)


def test_names_are_escaped_in_markdown_and_made_safe_on_disk(results) -> None:
    evil = copy.deepcopy(results[0])
    evil["tokenizer"]["name"] = "<script>alert(1)</script>|x"
    text = to_markdown(boards([evil]))
    assert "<script>" not in text
    assert "\\|x" in text
    for name in ("../../etc/passwd", "..", "a/b?c=d", "", "x" * 500):
        path = slug(name)
        assert "/" not in path
        assert path not in {"", ".", ".."}
        assert len(path) <= 150


def test_csv_keeps_full_precision(results) -> None:
    import io

    import pandas as pd

    frame = pd.read_csv(io.StringIO(to_csv(boards(results))))
    mine = frame[frame["tokenizer"] == "mine"].iloc[0]
    assert mine["psnr"] == next(r for r in results if r["tokenizer"]["name"] == "mine")["metrics"]["psnr"]["value"]


def test_a_damaged_shard_names_the_directory(tmp_path, mine, pictures, suite_file) -> None:
    from tokbench.errors import StoreError
    from tokbench.session import plan_runs

    request = Request((str(suite_file),), (mine,), (str(pictures),), output=tmp_path, device="cpu")
    run(request)
    shard = next(tmp_path.glob("*/*/*/shards/*/rows.parquet")).parent
    (shard / "rows.parquet").write_bytes(b"PAR1")
    (shard / "states.safetensors").write_bytes(b"\0" * 4)
    (planned,) = plan_runs(request)
    with pytest.raises(StoreError, match="is damaged"):
        Store(tmp_path).read_shard(planned, planned.shards[0])
    with pytest.raises(StoreError, match="is damaged"):
        Store(tmp_path).read_state(planned, planned.shards[0], "psnr")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sample:image", "sample:image"),
        ("hf:org/name@main:test", "hf:org/name@main:test"),
        ("folder:/home/someone/kodak/", "folder:kodak"),
        ("/home/someone/kodak", "folder:kodak"),
        ("C:\\Users\\someone\\kodak", "folder:kodak"),
        ("librispeech:/home/someone/test-clean", "librispeech:test-clean"),
        ("coco-text:/home/someone/val?truth=/home/someone/a.json&set=val", "coco-text:val?truth=a.json&set=val"),
        ("wds:/home/someone/shard-{000..012}.tar", "wds:shard-{000..012}.tar"),
    ],
)
def test_results_hold_no_folder_of_the_machine(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown
