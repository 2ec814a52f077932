"""What a metric gathers from the references is kept for the next tokenizer and changes no bit; absent weights are a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokbench.registry import build_metric
from tokbench.session import Request, run

HERE = Path(__file__).parent
CHEAP = f"{HERE / 'cheap_fid.py'}:CheapFid"


@pytest.fixture
def seen() -> dict[str, int]:
    """Return the counts of the metric class as the engine loads it, at zero."""
    counts: dict[str, int] = type(build_metric(CHEAP)).seen  # type: ignore[attr-defined]
    counts.update(reference=0, reconstruction=0)
    return counts


def go(pictures: Path, suite: str, output: Path, *tokenizers: str, **more: Any) -> dict[str, dict[str, Any]]:
    options: dict[str, Any] = {"metrics": (CHEAP,), "device": "cpu", "batch_size": 3, "decode_workers": 0, **more}
    request = Request(
        suites=(suite,), tokenizers=tokenizers, datasets=(f"folder:{pictures}",), output=output, **options
    )
    return {result["tokenizer"]["name"]: result for result in run(request).results}


def value(result: dict[str, Any]) -> float:
    number = result["metrics"]["cheap_fid"]["value"]
    assert number is not None
    assert number > 0
    return float(number)


def test_the_second_tokenizer_does_without_the_references(
    pictures: Path, suite_file: Path, tmp_path: Path, seen: dict[str, int]
) -> None:
    suite = str(suite_file)
    go(pictures, suite, tmp_path / "a", "jpeg?quality=10", shard_size=4)
    assert seen == {"reference": 11, "reconstruction": 11}
    kept = value(go(pictures, suite, tmp_path / "a", "jpeg?quality=30", shard_size=4)["jpeg?quality=30"])
    assert seen == {"reference": 11, "reconstruction": 22}
    alone = value(go(pictures, suite, tmp_path / "b", "jpeg?quality=30", shard_size=4)["jpeg?quality=30"])
    assert seen == {"reference": 22, "reconstruction": 33}
    assert kept == alone
    states = [sorted((tmp_path / place).glob("jpeg_quality=30/**/states.safetensors")) for place in "ab"]
    assert len(states[0]) == len(states[1]) == 3
    assert [path.read_bytes() for path in states[0]] == [path.read_bytes() for path in states[1]]


def test_the_number_does_not_depend_on_shards_and_batches(
    pictures: Path, suite_file: Path, tmp_path: Path, seen: dict[str, int]
) -> None:
    numbers = {
        value(go(pictures, str(suite_file), tmp_path / f"{size}-{batch}", "jpeg?quality=10", shard_size=size,
                 batch_size=batch)["jpeg?quality=10"])
        for size, batch in ((1000, 8), (4, 1), (1, 3), (5, 3))
    }  # fmt: skip
    assert len(numbers) == 1
    assert seen["reference"] == 44


def test_other_settings_and_other_protocols_have_sums_of_their_own(
    pictures: Path, suite_file: Path, tmp_path: Path, seen: dict[str, int]
) -> None:
    suite = str(suite_file)
    go(pictures, suite, tmp_path, "jpeg?quality=10")
    go(pictures, suite, tmp_path, "jpeg?quality=30", metrics=(f"{CHEAP}?grid=4",))
    assert seen["reference"] == 22
    go(pictures, suite, tmp_path, "jpeg?quality=30", limit=5)
    assert seen["reference"] == 27


def test_where_a_row_fails_the_kept_sums_are_neither_written_nor_used(
    pictures: Path, suite_file: Path, tmp_path: Path, hostile: str, seen: dict[str, int]
) -> None:
    suite = str(suite_file)
    broken = f"{hostile}:FailsOnDark"
    (failing,) = go(pictures, suite, tmp_path / "a", broken).values()
    assert failing["samples"]["failed"] >= 1
    assert not list((tmp_path / "a").glob(".cache/reference/*"))
    go(pictures, suite, tmp_path / "b", "resize")
    assert len(list((tmp_path / "b").glob(".cache/reference/*"))) == 1
    (later,) = go(pictures, suite, tmp_path / "b", broken).values()
    assert later["metrics"]["cheap_fid"] == failing["metrics"]["cheap_fid"]


def test_a_damaged_file_of_kept_sums_is_made_again(
    pictures: Path, suite_file: Path, tmp_path: Path, seen: dict[str, int]
) -> None:
    suite = str(suite_file)
    go(pictures, suite, tmp_path, "jpeg?quality=10")
    (kept,) = (tmp_path / ".cache" / "reference").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    go(pictures, suite, tmp_path, "jpeg?quality=30")
    assert seen["reference"] == 22
    assert kept.read_bytes() == whole


def test_absent_weights_are_a_cell_and_the_rest_stands(pictures: Path, suite_file: Path, tmp_path: Path) -> None:
    names = (f"{HERE / 'cheap_fid.py'}:Weightless", f"{HERE / 'cheap_fid.py'}:WeightlessSet", "psnr")
    result = go(pictures, str(suite_file), tmp_path, "jpeg?quality=10", metrics=names, shard_size=6)["jpeg?quality=10"]
    assert result["status"] == "complete"
    assert result["samples"]["ok"] == 11
    assert result["metrics"]["psnr"]["status"] == "ok"
    for column in ("weightless", "weightless_set"):
        cell = result["metrics"][column]
        assert cell["status"] == "weights absent"
        assert cell["value"] is None
        assert "put it at /weights/" in cell["reason"]
    asked = type(build_metric(names[0])).asked  # type: ignore[attr-defined]
    assert len(asked) == 2  # once a shard, not once a row


def test_results_with_absent_cells_fit_the_schema(pictures: Path, suite_file: Path, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((HERE.parents[2] / "tokbench" / "result.schema.json").read_text())
    names = (f"{HERE / 'cheap_fid.py'}:WeightlessSet", CHEAP)
    result = go(pictures, str(suite_file), tmp_path, "jpeg?quality=10", metrics=names)["jpeg?quality=10"]
    jsonschema.validate(result, schema)


def test_a_suite_whose_data_is_not_here_is_a_state_with_the_step_that_mends_it(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'name = "mine"\nmodality = "image"\ndataset = "folder:no-such-place"\nexpected_samples = 50000\n'
        'metrics = ["psnr"]\n[prepare]\npreset = "adm"\nsize = 32\n'
    )
    (result,) = run(Request(suites=(str(suite),), tokenizers=("resize",), output=tmp_path / "out")).results
    assert result["state"] == "data absent"
    assert "-d folder:" in result["fix"]
    assert "50,000 files" in result["fix"]
