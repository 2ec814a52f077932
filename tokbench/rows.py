"""Per-sample records: their form in memory and in Parquet, and the statistics every cell carries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RowStatus = Literal["ok", "failed"]
NOT_APPLICABLE = "not applicable: "
"""Starts the reason of a value that this tokenizer has by its nature not, so that its cell says so."""

_FIXED = ("key", "group", "status", "reason", "undefined", "notes", "details")

Record = Mapping[str, str | int | float | bool | None]
"""One part of a row that a metric keeps: a word, a face, a sentence."""


@dataclass(frozen=True)
class Row:
    """One sample: its values, or why there are none.

    Attributes:
        key: Stable sample key.
        group: The file it was cut from.
        values: Column -> value; None where the column is undefined for this sample.
        undefined: Column -> reason, for the None values.
        notes: What decoding had to do ("alpha composited on white").
        details: Metric -> records of the row's parts (words, faces), for metrics that keep them.
    """

    key: str
    group: str
    status: RowStatus = "ok"
    reason: str = ""
    values: Mapping[str, float | None] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Sequence[Record]] = field(default_factory=dict)


@dataclass(frozen=True)
class Statistic:
    """Mean over the rows that have a value, with the 95 % Student t interval of the mean."""

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int


def column_names(rows: Iterable[Row]) -> list[str]:
    """Return every column some row has, sorted."""
    return sorted({name for row in rows for name in row.values})


def statistic(values: Sequence[float | None]) -> Statistic:
    """Summarise one column. Sums are exactly rounded (`math.fsum`), so that order, batches and shards cannot matter."""
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return Statistic(None, None, None, None, 0)
    mean = math.fsum(known) / n
    if n == 1:
        return Statistic(mean, None, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1)
    stderr = math.sqrt(variance / n)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975)) * stderr
    return Statistic(mean, stderr, mean - half, mean + half, n)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as Parquet, in the order given: fixed text columns, then one nullable float64 column a metric column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "group": pa.array([row.group for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
        "reason": pa.array([row.reason for row in rows], pa.string()),
        "undefined": pa.array([json.dumps(dict(row.undefined), sort_keys=True) for row in rows], pa.string()),
        "notes": pa.array([json.dumps(list(row.notes)) for row in rows], pa.string()),
    }
    if any(row.details for row in rows):
        columns["details"] = pa.array([_json(row.details) for row in rows], pa.string())
    for name in column_names(rows):
        columns[name] = pa.array([row.values.get(name) for row in rows], pa.float64())
    pq.write_table(pa.table(columns), path)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pylist()
    return [
        Row(
            key=record["key"],
            group=record["group"],
            status=record["status"],
            reason=record["reason"],
            values={name: value for name, value in record.items() if name not in _FIXED}
            if record["status"] == "ok"
            else {},
            undefined=json.loads(record["undefined"]),
            notes=tuple(json.loads(record["notes"])),
            details=json.loads(record.get("details") or "{}"),
        )
        for record in table
    ]


def _json(details: Mapping[str, Sequence[Record]]) -> str:
    return json.dumps(
        {metric: [dict(record) for record in records] for metric, records in details.items()},
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=True,
    )
