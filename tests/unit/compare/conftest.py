"""A maker of result directories with rows of known values, so that what `compare` says can be foretold."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokbench.rows import Row, write_rows

Maker = Callable[..., Path]


def _cell(metric: str, values: Sequence[float | None], unit: str, higher: bool, atol: float) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "metric": metric, "version": 1, "unit": unit, "higher_is_better": higher, "decimals": 4, "level": True, "atol": atol,
        "value": math.fsum(known) / len(known) if known else None, "stderr": None, "ci95": None, "n": len(known),
        "n_undefined": len(values) - len(known), "n_failed": 0, "status": "ok" if known else "undefined",
        "reason": "" if known else "none", "where": "row",
    }  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Return a function that writes a result with the given row values and returns its directory."""

    def write(
        store: str,
        columns: Mapping[str, Sequence[float | None]],
        *,
        name: str = "mine",
        suite: str = "small",
        groups: Sequence[str] | None = None,
        failed: Sequence[int] = (),
        protocol: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        seconds: float = 0.01,
        device: str = "cpu",
        digest: str | None = "d" * 64,
        corpus: Mapping[str, float] | None = None,
    ) -> Path:
        length = len(next(iter(columns.values())))
        rows = [
            Row(f"{i:04d}", groups[i] if groups else f"{i:04d}", "failed", "broken")
            if i in failed
            else Row(f"{i:04d}", groups[i] if groups else f"{i:04d}", values={c: v[i] for c, v in columns.items()})
            for i in range(length)
        ]
        directions = {"psnr": ("dB", True), "mae": ("", False), "ssim": ("", True)}
        cells = {c: _cell(c, [row.values.get(c) for row in rows], *directions[c], 1e-6) for c in columns}
        for column, value in (corpus or {}).items():
            cells[column] = {**_cell("fid", [value], "", False, 1e-3), "where": "corpus", "n": length}
        settings = {
            "hash": "a" * 64, "modality": "image", "prepare": {"preset": "adm", "size": 32}, "rounding": "round", "seed": 0,
            "dataset": "b" * 64, "limit": None, "dtype": "float32",
            "metrics": {cell["metric"]: {"version": 1} for cell in cells.values()},
        }  # fmt: skip
        timing = {"samples": length, "encode_seconds": seconds * length, "decode_seconds": seconds * length}
        result = {
            "schema_version": 1, "status": "complete", "reason": "", "key": "c" * 64, "suite": suite, "modality": "image",
            "board": [], "dataset": {"uri": "sample:image", "manifest": "b" * 64},
            "protocol": {**settings, **(protocol or {}), "metrics": {**settings["metrics"], **(metrics or {})}},
            "tokenizer": {"name": name, "identity": {"target": name}, "weights": ""},
            "metrics": cells,
            "timing": {"batch_size": 8, "encode_seconds_per_sample": seconds, "decode_seconds_per_sample": seconds,
                       "shards": [timing]},
            "provenance": {"device": {"name": device}, "shards": [], "contract": {"passed": True, "digest": digest}},
        }  # fmt: skip
        if protocol is not None:
            result["protocol"]["hash"] = "f" * 64
        place = tmp_path / store / name.replace("?", "_") / f"{suite}@aaaaaaaa" / "key"
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").write_text(json.dumps(copy.deepcopy(result)))
        write_rows(place / "rows.parquet", rows)
        return place

    return write
