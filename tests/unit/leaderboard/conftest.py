"""A maker of results for boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokbench.entries import Entry
from tokbench.rows import Row, statistic, write_rows

Result = dict[str, Any]


def _cell(metric: str, values: Sequence[float | None], higher: bool | None, unit: str = "") -> Result:
    found = statistic(values)
    return {
        "metric": metric, "version": 1, "unit": unit, "higher_is_better": higher, "decimals": 2, "level": True,
        "value": found.value, "stderr": found.stderr, "ci95": None if found.low is None else [found.low, found.high],
        "n": found.n, "n_undefined": len(values) - found.n, "n_failed": 0, "where": "row",
        "status": "ok" if found.n else "undefined", "reason": "" if found.n else "silence",
    }  # fmt: skip


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Entry]:
    """Return a function that makes an entry with its rows on disk (unless `store` is False)."""

    def make(
        name: str, psnr: Sequence[float | None], bpp: float = 0.3, *, store: bool = True, suite: str = "small",
        hash_: str = "a" * 64, limit: int | None = None, failed: int = 0, passed: bool = True, kind: str = "discrete",
    ) -> Entry:  # fmt: skip
        key = name.encode().hex().ljust(64, "0")[:64]
        rate = [bpp] * len(psnr)
        result: Mapping[str, Any] = {
            "schema_version": 1, "status": "complete", "reason": "", "key": key, "suite": suite, "modality": "image",
            "board": ["bpp", "psnr"], "dataset": {"uri": "sample:image", "manifest": "b" * 64},
            "protocol": {
                "hash": hash_, "modality": "image", "prepare": {"size": 32}, "rounding": "round", "seed": 0,
                "dataset": "b" * 64, "limit": limit, "dtype": "float32",
                "metrics": {"psnr": {"version": 1}, "rate": {"version": 1}},
            },
            "tokenizer": {"name": name, "family": name, "kind": kind, "licence": "MIT", "identity": {"spec": {
                "codebook_size": [1024, 1024]}}, "weights": "", "source": "x"},
            "samples": {"total": len(psnr), "files": len(psnr), "rows": len(psnr), "ok": len(psnr), "failed": failed,
                        "failures": []},
            "metrics": {"psnr": _cell("psnr", psnr, True, "dB"), "bpp": _cell("rate", rate, False, "bit/pixel")},
            "timing": {"encode_seconds_per_sample": 0.1, "decode_seconds_per_sample": 0.2},
            "provenance": {"contract": {"passed": passed, "checks": []}, "device": {"name": "cpu"}, "shards": []},
        }  # fmt: skip
        place = tmp_path / "store" / key[:16] / suite / "key"
        if store:
            place.mkdir(parents=True, exist_ok=True)
            rows = [Row(f"{i:04d}", f"{i:04d}", values={"psnr": v, "bpp": bpp}) for i, v in enumerate(psnr)]
            write_rows(place / "rows.parquet", rows)
        return Entry(result, place)

    return make
