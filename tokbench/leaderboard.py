"""Results -> boards, one a (suite, protocol): as a DataFrame, as CSV (the truth), Markdown and a terminal table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokbench.spec import canonical_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_RATES = ("bpp", "kbps")
_TIMES = (
    "encode_seconds_per_sample",
    "decode_seconds_per_sample",
    "latency_encode_seconds",
    "latency_decode_seconds",
    "batch_size",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Board:
    """All rows that may stand beside each other: one suite, one protocol hash, one version of every metric.

    Attributes:
        columns: Metric columns shown, in order.
        rows: Results and recorded absences, sorted: references first, then by rate, then by name.
        notes: What was left out of the board and why.
    """

    suite: str
    modality: str
    protocol: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return `suite @ protocol` with the number of samples."""
        totals = {row["samples"]["rows"] for row in self.rows if "samples" in row}
        count = f", {max(totals)} samples" if totals else ""
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
    rows = sorted(shown, key=_order)
    return Board(suite, results[0]["modality"], protocol, _columns(rows), tuple(rows), tuple(notes))


def _metric_entries(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return metric name -> the settings most rows have (the highest version first)."""
    seen: dict[str, Counter[tuple[int, str]]] = {}
    for result in results:
        if result["status"] != "complete":
            continue
        for name, entry in result["protocol"]["metrics"].items():
            seen.setdefault(name, Counter())[int(entry["version"]), canonical_json(entry)] += 1
    return {name: max(counts, key=lambda item: (item[0], counts[item], item[1]))[1] for name, counts in seen.items()}


def _comparable(row: Mapping[str, Any], entries: Mapping[str, str], notes: list[str]) -> Mapping[str, Any]:
    if "metrics" not in row:
        return row
    mine = row["protocol"]["metrics"]
    other = sorted(name for name, entry in mine.items() if canonical_json(entry) != entries.get(name))
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


# ------------------------------------------------------------------------------------------------- renderings


def to_frame(board: Board) -> pd.DataFrame:
    """Return a board with full precision: each column's value, interval and n; empty where there is none."""
    import pandas as pd

    records = []
    for row in board.rows:
        record: dict[str, Any] = {
            "suite": board.suite,
            "protocol": board.protocol,
            "modality": board.modality,
            "tokenizer": row["tokenizer"]["name"],
            "kind": row["tokenizer"]["kind"],
            "licence": row["tokenizer"]["licence"],
            "status": row["status"] if row["status"] != "not run" else row["state"],
            "reason": row.get("reason", ""),
            "samples": row.get("samples", {}).get("rows"),
            "failed": row.get("samples", {}).get("failed"),
        }
        for column in board.columns:
            cell = row.get("metrics", {}).get(column)
            interval = (cell or {}).get("ci95") or (None, None)
            record[column] = None if cell is None else cell["value"]
            if cell is not None and cell["where"] == "row":
                record |= {f"{column}_ci_low": interval[0], f"{column}_ci_high": interval[1], f"{column}_n": cell["n"]}
        timing = row.get("timing", {})
        record |= {name: timing.get(name) for name in _TIMES}
        record["device"] = row.get("provenance", {}).get("device", {}).get("name")
        record["key"] = row["key"]
        records.append(record)
    return pd.DataFrame.from_records(records)


def to_csv(found: Sequence[Board]) -> str:
    """Return all boards as one CSV, a row a (tokenizer, suite, protocol), numbers in full precision."""
    import pandas as pd

    return str(pd.concat([to_frame(board) for board in found], ignore_index=True).to_csv(index=False)) if found else ""


def to_markdown(found: Sequence[Board]) -> str:
    """Return the boards as Markdown tables; names and reasons are escaped."""
    parts = []
    for board in found:
        header = ["tokenizer", *(_heading(board, column) for column in board.columns), "enc/s", "dec/s"]
        lines = [f"## {_escape(board.title)}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for row in board.rows:
            lines.append(_line([_escape(row["tokenizer"]["name"]), *(_escape(text) for text in _texts(board, row))]))
        lines += ["", *(f"- {_escape(note)}" for note in board.notes)]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def to_table(board: Board) -> Table:
    """Return a board as a rich table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=board.title, title_justify="left", title_style="bold")
    table.add_column("tokenizer", no_wrap=True)
    for column in board.columns:
        table.add_column(_heading(board, column), justify="right")
    table.add_column("enc/s", justify="right")
    table.add_column("dec/s", justify="right")
    for row in board.rows:
        absent = row["status"] != "complete"
        cells = [Text(text, style="dim" if absent else "") for text in _texts(board, row)]
        table.add_row(Text(row["tokenizer"]["name"]), *cells)
    return table


def _heading(board: Board, column: str) -> str:
    cell = next((row["metrics"][column] for row in board.rows if column in row.get("metrics", {})), None)
    if cell is None:
        return column
    arrow = {True: " ↑", False: " ↓", None: ""}[cell["higher_is_better"]]
    return f"{column}{arrow}" + (f" ({cell['unit']})" if cell["unit"] else "")


def _texts(board: Board, row: Mapping[str, Any]) -> list[str]:
    """Return the row's cells as shown; an absent run says why in its first cell."""
    width = len(board.columns) + 2
    if row["status"] != "complete":
        why = row.get("state", row["status"])
        return [f"not run: {why}" if row["status"] == "not run" else f"failed: {row['reason']}", *[""] * (width - 1)]
    texts = [_cell_text(row["metrics"].get(column)) for column in board.columns]
    timing = row["timing"]
    for name in _TIMES[:2]:
        seconds = timing[name]
        texts.append(f"{1 / seconds:.3g}" if seconds else "–")
    return texts


def _cell_text(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["value"] is None:
        return "–"
    text = f"{cell['value']:.{cell['decimals']}f}"
    if cell["ci95"] is not None and cell["level"] and cell["higher_is_better"] is not None:
        text += f" ±{(cell['ci95'][1] - cell['ci95'][0]) / 2:.{max(1, cell['decimals'] - 1)}f}"
    lost = cell["n_failed"] + cell["n_undefined"]
    return f"{text} ({lost} missing)" if lost else text


def _escape(text: str) -> str:
    table = {ord(char): f"\\{char}" for char in "\\`*_[]|#"} | {ord("<"): "&lt;", ord(">"): "&gt;", ord("\n"): " "}
    return text.translate(table)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
