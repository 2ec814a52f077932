"""Results and published numbers -> boards, one a (suite, protocol)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tokbench.entries import Entry
from tokbench.published import (
    BoardSpec,
    Budget,
    Declared,
    Plot,
    ReportedColumn,
    ReportedRow,
    ReportedTable,
    ReportedValue,
)
from tokbench.ranks import Rank, ranks
from tokbench.spec import Modality

_RATES = ("bpp", "kbps")


@dataclass(frozen=True)
class Board:
    """All rows that may stand beside each other: one suite, one protocol hash, one version of every metric.

    Attributes:
        columns: Metric columns shown, in order.
        rows: Results and recorded absences, sorted: references first, then by rate, then by name; then published numbers,
            which have the status `reported`.
        notes: What was left out of the board and why.
        spec: What was declared of the board, or made up from its suite.
        ranks: Name of a measured row -> its rank; empty where nobody asked.
        places: Name of a measured row -> the directory of its result, in the order of the rows.
    """

    suite: str
    modality: str
    protocol: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    spec: BoardSpec | None = None
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    places: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def mixed(self) -> bool:
        """Tell whether published numbers stand on the board, so that a column must say which is which."""
        return any(row["status"] == "reported" for row in self.rows)

    @cached_property
    def timed(self) -> bool:
        """Tell whether a row was measured: published numbers have no speed."""
        return any(row["status"] != "reported" for row in self.rows)

    @property
    def title(self) -> str:
        """Return `suite @ protocol` with the number of samples; of a board without results, its own title."""
        if not self.protocol:
            return self.spec.title if self.spec else self.suite
        totals = {row["samples"]["rows"] for row in self.rows if "samples" in row}
        count = f", {max(totals)} sample{'s' * (max(totals) != 1)}" if totals else ""
        return f"{self.suite} @ {self.protocol[:8]}{count}"


def boards(results: Iterable[Mapping[str, Any]]) -> list[Board]:
    """Group results into boards; results of different protocols never share one.

    Within a board a cell is kept only when its metric has the board's version and settings; others are blanked and noted.
    Of several results of one row name the latest is shown, and the others are noted. Absences stand in every board of their
    suite and protocol unless a result is there.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["suite"], result["protocol"]["hash"]), []).append(result)
    return [_board(suite, protocol, rows) for (suite, protocol), rows in sorted(groups.items())]


def _board(suite: str, protocol: str, results: Sequence[Mapping[str, Any]]) -> Board:
    notes: list[str] = []
    latest: dict[str, Mapping[str, Any]] = {}
    for result in sorted(results, key=lambda r: (r["status"] == "complete", _finished(r), r["key"])):
        name = result["tokenizer"]["name"]
        if name in latest and latest[name]["status"] == "complete":
            notes.append(f"{name}: an older result ({latest[name]['key'][:8]}) is not shown")
        latest[name] = result
    entries = _metric_entries(latest.values())
    shown = [_comparable(row, entries, notes) for row in latest.values()]
    limited = next((r["protocol"]["limit"] for r in shown if r["protocol"].get("limit") is not None), None)
    if limited is not None:
        notes.append(f"limited to the first {limited} files: not a result to publish")
    for row in shown:
        report = row.get("provenance", {}).get("contract", {})
        if report.get("passed") is False:
            broken = ", ".join(item["name"] for item in report["checks"] if item["verdict"] == "fail")
            notes.append(f"{row['tokenizer']['name']}: fails its contract ({broken}); not a result to publish")
    notes += dict.fromkeys(
        f"{cell['metric']}: {cell['status']}: {cell['reason']}"
        for row in shown
        for cell in row.get("metrics", {}).values()
        if cell["status"].endswith("absent")
    )
    notes += _without_value(shown)
    rows = sorted(shown, key=_order)
    return Board(suite, results[0]["modality"], protocol, _columns(rows), tuple(rows), tuple(notes))


def _without_value(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why columns that the suite's board asks for are not shown: none of its rows has a value, and one should."""
    wanted = dict.fromkeys(column for row in rows for column in row.get("board", ()))
    found: dict[str, list[str]] = {}
    for column in wanted:
        cells = [row["metrics"][column] for row in rows if row["status"] == "complete" and column in row["metrics"]]
        reasons = [cell["reason"] for cell in cells if cell["status"] == "undefined"]
        if reasons and all(cell["value"] is None for cell in cells):
            found.setdefault(reasons[0], []).append(column)
    return [f"{', '.join(columns)}: no value on this set: {reason}" for reason, columns in found.items()]


def _metric_entries(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return metric name -> the settings most rows have (the highest version first)."""
    seen: dict[str, Counter[tuple[int, str]]] = {}
    for result in results:
        if result["status"] != "complete":
            continue
        for name, entry in result["protocol"]["metrics"].items():
            seen.setdefault(name, Counter())[int(entry["version"]), json.dumps(entry, sort_keys=True)] += 1
    most = {name: max(counts, key=lambda item: (item[0], counts[item], item[1]))[1] for name, counts in seen.items()}
    return {name: json.loads(text) for name, text in most.items()}


def _comparable(row: Mapping[str, Any], entries: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    if "metrics" not in row or row["status"] != "complete":
        return row
    mine = row["protocol"]["metrics"]
    other = sorted(name for name, entry in mine.items() if entry != entries.get(name))
    if not other:
        return row
    notes.append(f"{row['tokenizer']['name']}: {', '.join(other)} has another version or settings and is not shown")
    kept = {column: cell for column, cell in row["metrics"].items() if cell["metric"] not in other}
    return {**row, "metrics": kept}


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    wanted: dict[str, None] = {}
    for row in rows:
        for column in row.get("board", ()):
            wanted.setdefault(column, None)
    cells = [(column, cell) for row in rows for column, cell in row.get("metrics", {}).items()]
    valued = {column for column, cell in cells if cell["value"] is not None}
    if wanted:
        return tuple(column for column in wanted if column in valued)
    rates = [column for column in _RATES if column in valued]
    rest = sorted({column for column, cell in cells if cell["level"] and column in valued and column not in rates})
    return (*rates, *rest)


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    rate = next((value for name in _RATES if (value := _value(row, name)) is not None), math.inf)
    return (row["status"] == "not run", row["tokenizer"]["kind"] != "none", rate, row["tokenizer"]["name"])


def _value(row: Mapping[str, Any], column: str) -> float | None:
    cell = row.get("metrics", {}).get(column)
    return None if cell is None else cell["value"]


def _finished(result: Mapping[str, Any]) -> str:
    shards = result.get("provenance", {}).get("shards", [])
    return max((shard["finished"] for shard in shards), default="")


# ---------------------------------------------------------------------------------------------- declared boards


def ranked_boards(found: Sequence[Entry]) -> list[Board]:
    """Group results into boards as `boards` does, with budget groups of the modality's rate and ranks within them."""
    return [_ranked(board, default_spec(board), found) for board in boards(entry.result for entry in found)]


def declared_boards(declared: Declared, found: Sequence[Entry]) -> list[Board]:
    """Return a board for every declared one, several where its suite has results of several protocols.

    A suite without results gives a board only if it has published numbers. Results of suites nobody declared come last.
    """
    out: list[Board] = []
    shown: set[int] = set()
    for spec in declared.boards:
        tables = [declared.tables[name] for name in spec.reported]
        published = [(table.samples, _reported(table, row)) for table in tables for row in table.rows]
        mine = [entry for entry in found if _belongs(entry.result, spec, tables)]
        measured = boards(entry.result for entry in mine)
        if not measured and published:
            measured = [Board(spec.name, spec.modality, "", (), ())]
        for board in measured:
            names = {str(row["tokenizer"]["name"]): row for row in board.rows if row["status"] == "complete"}
            rows = (*board.rows, *(_with_difference(row, names, samples) for samples, row in published))
            valued = {c for row in rows for c, cell in row.get("metrics", {}).items() if cell["value"] is not None}
            columns = tuple(column for column in spec.columns if column in valued)
            full = replace(
                board,
                rows=tuple(_sorted(rows, spec)),
                columns=columns or board.columns,
                notes=(*board.notes, *_other_sizes(names, tables)),
            )
            out.append(_ranked(full, spec, mine))
        shown |= {id(entry) for entry in mine}
    known = {spec.suite for spec in declared.boards}
    return out + ranked_boards([e for e in found if id(e) not in shown and e.result["suite"] not in known])


def _belongs(result: Mapping[str, Any], spec: BoardSpec, tables: Sequence[ReportedTable]) -> bool:
    """Tell whether a result stands on a declared board: it is of its suite, on the suite's data or on a whole copy of it.

    `run -s imagenet-256-adm -d folder:val` is of the suite `imagenet-256-adm+val`. It is a copy of the data that the
    published numbers were made with if it has as many files.
    """
    suite, _, data = result["suite"].partition("+")
    if not spec.suite or suite != spec.suite:
        return False
    sizes = {table.samples for table in tables} - {None}
    return not data or result.get("samples", {}).get("files") in sizes


def default_spec(board: Board) -> BoardSpec:
    """Return how a board that nobody declared is grouped, ranked and drawn: by its rate and its first quality column."""
    budgets = {
        "image": Budget("bpp", (0.25, 0.5, 1.0, 2.0)),
        "video": Budget("bpp", (0.05, 0.1, 0.25, 0.5, 1.0)),
        "audio": Budget("kbps", (3.0, 8.0, 16.0, 32.0, 64.0)),
    }
    budget = budgets[board.modality]
    rowwise = {
        name
        for row in board.rows
        for name, cell in row.get("metrics", {}).items()
        if (cell["where"] == "row" or cell.get("ratio"))
        and cell["higher_is_better"] is not None
        and cell["metric"] != "rate"
    }
    quality = [column for column in board.columns if column in rowwise and column not in _RATES]
    return BoardSpec(
        name=board.suite,
        title=board.suite,
        modality=cast("Modality", board.modality),
        columns=board.columns,
        suite=board.suite,
        sort=quality[0] if quality else "",
        budget=budget,
        plots=tuple(Plot(budget.column, column) for column in quality[:2]),
    )


def _ranked(board: Board, spec: BoardSpec, found: Sequence[Entry]) -> Board:
    places = {entry.result["key"]: entry.place for entry in found if entry.result["status"] == "complete"}
    rows = {str(row["tokenizer"]["name"]): row for row in board.rows if row["status"] != "reported"}
    at = {name: places[row["key"]] for name, row in rows.items() if row["key"] in places}
    return replace(board, spec=spec, places=at, ranks=ranks(rows, at, spec) if spec.sort else {})


def _sorted(rows: Sequence[Mapping[str, Any]], spec: BoardSpec) -> list[Mapping[str, Any]]:
    """Keep measured rows as they are; put published ones behind, best first in the board's sort column."""

    def key(row: Mapping[str, Any]) -> tuple[bool, float, str]:
        cell = row["metrics"].get(spec.sort)
        value = math.inf if cell is None else -cell["value"] if cell["higher_is_better"] else cell["value"]
        return (cell is None, value, row["tokenizer"]["name"])

    published = sorted((row for row in rows if row["status"] == "reported"), key=key)
    return [*(row for row in rows if row["status"] != "reported"), *published]


def _reported(table: ReportedTable, row: ReportedRow) -> Mapping[str, Any]:
    """Return a published row in the form boards hold, so that every rendering treats it alike."""
    about = {column.name: column for column in table.columns}
    cells = {name: _reported_cell(about[name], value) for name, value in row.values.items()}
    if row.tokens is not None:
        tokens = ReportedValue(float(row.tokens * row.num_codebooks))
        cells["tokens"] = _reported_cell(ReportedColumn("tokens", decimals=0, description="of a sample"), tokens)
    bits = row.bits()
    if bits is not None and table.size is not None and table.modality == "image":
        rate = ReportedColumn("bpp", "bit/pixel", False, 4, "nominal: tokens x log2(codebook size) over pixels")
        cells["bpp"] = _reported_cell(rate, ReportedValue(bits / (table.size[0] * table.size[1])))
    size = "" if row.codebook_size is None else str(row.codebook_size)
    return {
        "status": "reported",
        "key": "",
        "tokenizer": {
            "name": row.tokenizer,
            "kind": row.kind,
            "licence": row.licence,
            "codebook": size if row.num_codebooks == 1 or not size else f"{row.num_codebooks}x{size}",
            "card": row.card,
        },
        "metrics": cells,
        "preset": table.preset,
        "source": row.source or table.source,
        "date": table.date,
        "note": row.note,
        "verified": all(value.verified for value in row.values.values()),
    }


def _reported_cell(column: ReportedColumn, value: ReportedValue) -> dict[str, Any]:
    return {
        "metric": "reported", "unit": column.unit, "higher_is_better": column.higher_is_better, "decimals": column.decimals,
        "level": True, "value": value.value, "upper": value.upper, "verified": value.verified, "text": value.text, "n": None,
        "ci95": None,
        "n_failed": 0, "n_undefined": 0, "status": "ok", "reason": "", "where": "reported", "description": column.description,
    }  # fmt: skip


def _other_sizes(measured: Mapping[str, Mapping[str, Any]], tables: Sequence[ReportedTable]) -> list[str]:
    """Say which results are of another number of files than the published numbers beside them."""
    wanted = sorted({table.samples for table in tables if table.samples is not None})
    found = sorted({row["samples"]["files"] for row in measured.values()} - set(wanted)) if wanted else []
    have, want = (" and ".join(f"{count:,}" for count in counts) for counts in (found, wanted))
    return [f"measured on {have} files, published on {want}: not comparable"] if found else []


def _with_difference(
    row: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]], samples: int | None
) -> Mapping[str, Any]:
    """Put measured minus published beside each published number whose checkpoint stands on the board too.

    Numbers of different numbers of files are not subtracted: FID alone would be off by more than tokenizers differ.
    """
    mine = measured.get(row["tokenizer"]["card"])
    if mine is None or samples not in {None, mine["samples"]["files"]}:
        return row
    cells = {
        column: {**cell, "measured_difference": value - cell["value"]}
        if (value := _value(mine, column)) is not None
        else cell
        for column, cell in row["metrics"].items()
    }
    return {**row, "metrics": cells}


def codebook(row: Mapping[str, Any]) -> str:
    """Return a row's codebooks in a few characters: `16384`, `8x1024`, `1024,512`, or ""."""
    if "codebook" in row["tokenizer"]:
        return str(row["tokenizer"]["codebook"])
    sizes: Sequence[int] = (row["tokenizer"].get("identity") or {}).get("spec", {}).get("codebook_size") or ()
    if len(sizes) > 1 and len(set(sizes)) == 1:
        return f"{len(sizes)}x{sizes[0]}"
    return ",".join(map(str, sizes))
