"""Real words, a real recogniser: text scores fall as JPEG quality falls, and small words fall first."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("easyocr_en_models")

TOKENIZERS = ("resize", "jpeg?quality=95", "jpeg?quality=30", "jpeg?quality=5")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tokbench_cli: Callable[..., Any]) -> Path:
    """Return the results of four tokenizers on four pages of the built-in words."""
    folder = tmp_path_factory.mktemp("text")
    chosen = [part for name in TOKENIZERS for part in ("-t", name)]
    run = ("run", "-s", "text-sample", "-m", "text_easyocr", "--limit", "4", *chosen, "-o", str(folder / "results"))
    done = tokbench_cli(*run, TOKBENCH_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    return folder / "results"


def cells(store: Path) -> dict[str, dict[str, Any]]:
    results = [json.loads(path.read_text()) for path in store.rglob("result.json")]
    return {result["tokenizer"]["name"]: result["metrics"] for result in results}


@pytest.mark.slow
def test_scores_fall_with_quality_and_small_words_fall_first(store: Path) -> None:
    found = cells(store)
    rows = [found[name] for name in TOKENIZERS]
    for score in ("t_acc_easyocr", "t_ned_easyocr"):
        for better, worse in pairwise(rows):
            margin = better[score]["value"] - better[score]["ci95"][0]
            assert worse[score]["value"] <= better[score]["value"] + margin
        assert rows[3][score]["ci95"][1] < rows[0][score]["ci95"][0]  # no interval hides the whole fall
    assert rows[0]["t_acc_easyocr"]["value"] > 0.7
    assert rows[0]["t_acc_reference_easyocr"]["value"] >= rows[0]["t_acc_easyocr"]["value"]
    at_30 = [rows[2][f"t_acc_{size}_easyocr"]["value"] for size in ("small", "medium", "large")]
    before = [rows[0][f"t_acc_{size}_easyocr"]["value"] for size in ("small", "medium", "large")]
    lost = [1 - now / then for now, then in zip(at_30, before, strict=True)]
    assert lost[0] > lost[1] > lost[2]
    assert lost[0] > 0.4
    assert lost[2] < 0.2


@pytest.mark.slow
def test_cells_say_how_many_words_they_stand_on(store: Path) -> None:
    row = cells(store)["resize"]
    parts = [row[f"t_acc_{size}_easyocr"] for size in ("small", "medium", "large")]
    assert row["t_acc_easyocr"]["n"] == sum(part["n"] for part in parts) > 80
    assert row["t_acc_easyocr"]["value"] == pytest.approx(sum(part["value"] for part in parts) / 3, abs=1e-12)
    for part in parts:
        low, high = part["ci95"]
        assert low <= part["value"] <= high
        assert part["n"] >= 10


@pytest.mark.slow
def test_references_are_read_once_and_every_word_is_kept(store: Path) -> None:
    (kept,) = (store / ".cache" / "readings").glob("*.json")
    read = json.loads(kept.read_text())
    pages = read if len(read) == 4 else next(iter(read.values()))
    assert len(pages) == 4
    for path in store.rglob("result.json"):
        rows = pq.read_table(path.parent / "rows.parquet").to_pylist()
        for row in rows:
            words = json.loads(row["details"])["text_easyocr"]
            assert len(words) == row["text_words_easyocr"] > 30
            assert {word["status"] for word in words} == {"ok", "too small"}
            assert sum(word["status"] == "ok" for word in words) == row["text_scored_easyocr"]
            assert sum(word["read"] == word["text"] for word in words) == sum(
                row[f"text_right_{size}_easyocr"] for size in ("small", "medium", "large")
            )
