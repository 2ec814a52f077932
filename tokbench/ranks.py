"""Ranks within budget groups: two rows share a rank unless a paired test on their samples tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokbench.paired import Floats, holm, paired_ratio_t, paired_t
from tokbench.published import BoardSpec

LARGEST_GROUP = 200
"""Rows a group may have for every pair of them to be tested."""

LEVEL = 0.05


@dataclass(frozen=True)
class Rank:
    """Where a row stands in its group: 1 + the rows that are shown to be better; None with the reason."""

    place: int | None
    reason: str = ""
    tied: bool = False


def group_of(row: Mapping[str, Any], spec: BoardSpec) -> str:
    """Return the budget group of a row, "" on a board without groups."""
    if spec.budget is None:
        return ""
    cell = row.get("metrics", {}).get(spec.budget.column)
    return spec.budget.group(None if cell is None else cell["value"])


def ranks(rows: Mapping[str, Mapping[str, Any]], places: Mapping[str, Path], spec: BoardSpec) -> dict[str, Rank]:
    """Rank the rows of one board by its `sort` column; keys are those of `rows`.

    A row is ranked at full coverage only: no failed sample, every sample with a value, the whole dataset, contract passed.
    Pairs are tested by a paired t test on the samples (whole videos at a time; ratios of sums by linearisation), with Holm's
    correction within the group; no row is ranked behind one with a lower mean.
    """
    found: dict[str, Rank] = {}
    groups: dict[str, list[str]] = {}
    for key, row in rows.items():
        reason = _barred(row, spec.sort)
        if reason:
            found[key] = Rank(None, reason)
        elif key not in places or not (places[key] / "rows.parquet").exists():
            found[key] = Rank(None, "its rows are not here")
        else:
            groups.setdefault(group_of(row, spec), []).append(key)
    for members in groups.values():
        if len(members) > LARGEST_GROUP:
            found |= {key: Rank(None, f"more than {LARGEST_GROUP} rows in the group") for key in members}
        else:
            found |= _rank(members, rows, places, spec.sort)
    return found


def _barred(row: Mapping[str, Any], column: str) -> str:
    if row["status"] != "complete":
        return "published, without rows" if row["status"] == "reported" else "not run"
    if row["tokenizer"]["kind"] == "none":
        return "a reference, no tokenizer"
    if row["protocol"]["limit"] is not None:
        return "limited to the first files"
    if row.get("provenance", {}).get("contract", {}).get("passed") is False:
        return "fails its contract"
    cell = row["metrics"].get(column)
    if cell is None or cell["value"] is None:
        return f"no {column}"
    if (cell["where"] != "row" and not cell.get("ratio")) or cell["higher_is_better"] is None:
        return f"{column} has no rows to test"
    total = row["samples"]["rows"]
    covered = total - cell["n_undefined"] if cell.get("ratio") else cell["n"]
    if row["samples"]["failed"] or covered < total:
        return f"covers {covered}/{total} samples"
    return ""


def _rank(
    members: Sequence[str], rows: Mapping[str, Mapping[str, Any]], places: Mapping[str, Path], column: str
) -> dict[str, Rank]:
    about = rows[members[0]]["metrics"][column]
    parts = [name for part in about.get("ratio") or () for name in part]
    series = {key: _columns(places[key] / "rows.parquet", parts or [column]) for key in members}
    names, groups = series[members[0]][0], series[members[0]][1]
    out = {key: Rank(None, "other samples than its neighbours") for key in members if series[key][0] != names}
    same = [key for key in members if key not in out]
    sign = 1.0 if about["higher_is_better"] else -1.0
    means = np.array([rows[key]["metrics"][column]["value"] for key in same], np.float64)
    pairs = [(a, b) for a in range(len(same)) for b in range(a + 1, len(same))]
    better_than = np.zeros(len(same), dtype=int)
    tests = []
    for a, b in pairs:
        x, y = series[same[a]][2], series[same[b]][2]
        mean, p = paired_ratio_t(y, x, groups) if parts else paired_t(x[:, 0] - y[:, 0], groups)
        tests.append((a, b, sign * mean, p))
    for (a, b, mean, _), p in zip(tests, holm([test[3] for test in tests]), strict=True):
        if p <= LEVEL:
            better_than[b if mean > 0 else a] += 1
    # No row stands behind one with a lower mean: not being told apart from it is the better reason to share its rank.
    order = np.argsort(sign * means, kind="stable")
    better_than[order] = np.minimum.accumulate(better_than[order])
    counts = better_than.tolist()
    tied = [counts.count(count) > 1 for count in counts]
    return out | {key: Rank(1 + int(better_than[i]), tied=tied[i]) for i, key in enumerate(same)}


def _columns(path: Path, columns: Sequence[str]) -> tuple[list[str], list[str], Floats]:
    """Return keys, files and (N, C) values; nothing counts as zero above and below of a ratio."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "group", *dict.fromkeys(columns)])
    values = [np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64) for name in columns]
    return table["key"].to_pylist(), table["group"].to_pylist(), np.nan_to_num(np.stack(values, axis=1))
