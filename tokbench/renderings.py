"""Boards as a DataFrame, CSV (the truth), Markdown and tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokbench.leaderboard import Board, codebook
from tokbench.markup import escape_markdown
from tokbench.ranks import group_of

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_WHOLE = ("rank", "samples", "failed", "batch_size", "peak_memory_bytes")
_LONGEST = 60  # characters of a terminal's cell
_TIMES = (
    "encode_seconds_per_sample",
    "decode_seconds_per_sample",
    "latency_encode_seconds",
    "latency_decode_seconds",
    "encode_real_time_factor",
    "decode_real_time_factor",
    "batch_size",
    "peak_memory_bytes",
)


def to_frame(board: Board) -> pd.DataFrame:
    """Return a board with full precision: each column's value, interval and n; empty where there is none."""
    import pandas as pd

    records = []
    for row in board.rows:
        record: dict[str, Any] = {
            "suite": board.suite,
            "protocol": board.protocol or row.get("preset", ""),
            "modality": board.modality,
            "tokenizer": row["tokenizer"]["name"],
            "kind": row["tokenizer"]["kind"],
            "licence": row["tokenizer"]["licence"],
            "origin": "reported" if row["status"] == "reported" else "measured",
            "codebook": codebook(row),
            "status": row["status"] if row["status"] != "not run" else row["state"],
            "reason": row.get("reason", ""),
            "group": "" if board.spec is None else group_of(row, board.spec),
            "rank": board.ranks[name].place if (name := row["tokenizer"]["name"]) in board.ranks else None,
            "samples": row.get("samples", {}).get("rows"),
            "failed": row.get("samples", {}).get("failed"),
        }
        for column in board.columns:
            cell = row.get("metrics", {}).get(column)
            interval = (cell or {}).get("ci95") or (None, None)
            record[column] = None if cell is None else cell["value"]
            if cell is not None and cell.get("upper") is not None:
                record[f"{column}_upper"] = cell["upper"]
            if cell is not None and "measured_difference" in cell:
                record[f"{column}_measured_difference"] = cell["measured_difference"]
            if cell is not None and (cell["where"] == "row" or cell["ci95"] is not None):
                record |= {f"{column}_ci_low": interval[0], f"{column}_ci_high": interval[1], f"{column}_n": cell["n"]}
        timing = row.get("timing", {})
        record |= {name: timing.get(name) for name in _TIMES}
        record["device"] = row.get("provenance", {}).get("device", {}).get("name")
        record["key"] = row["key"]
        if board.mixed:
            doubtful = [column for column, cell in row.get("metrics", {}).items() if not cell.get("verified", True)]
            record |= {name: row.get(name) for name in ("source", "date", "note")} | {"unverified": " ".join(doubtful)}
        records.append(record)
    frame = pd.DataFrame.from_records(records)
    whole = [name for name in map(str, frame) if name in _WHOLE or (name.endswith("_n") and name[:-2] in board.columns)]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def to_csv(found: Sequence[Board]) -> str:
    """Return all boards as one CSV, a row a (tokenizer, suite, protocol), numbers in full precision."""
    import pandas as pd

    return str(pd.concat([to_frame(board) for board in found], ignore_index=True).to_csv(index=False)) if found else ""


def to_markdown(found: Sequence[Board]) -> str:
    """Return the boards as Markdown tables; names and reasons are escaped."""
    parts = []
    for board in found:
        header = _header(board)
        lines = [f"## {escape_markdown(board.title)}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for row in board.rows:
            lines.append(_line([escape_markdown(text) for text in (row["tokenizer"]["name"], *_texts(board, row))]))
        if any(not cell.get("verified", True) for row in board.rows for cell in row.get("metrics", {}).values()):
            lines += ["", "(?): not verified in its source."]
        lines += ["", *(f"- {escape_markdown(note)}" for note in board.notes)]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def to_tables(board: Board, width: int | None = None) -> list[Table]:
    """Return a board as rich tables for the terminal: one, or several where one is wider than `width` characters.

    Each of several has the tokenizers and as many of the columns as fit; rows without any number stand in the first alone.
    """
    header = _header(board)
    rows = [(row, _short_texts(board, row)) for row in board.rows]
    if any(_failed(row) for row in board.rows):
        header = [header[0], "failed", *header[1:]]
        rows = [(row, [str(_failed(row) or ""), *texts]) for row, texts in rows]
    if width is not None and sum(_costs(header, rows)) + 1 > width:
        header = [title.replace(" (", "\n(") for title in header]
        rows = [(row, [text.replace(": ", ":\n", 1) for text in texts]) for row, texts in rows]
    costs = _costs(header, rows)
    blocks: list[list[int]] = [[]]
    for index, cost in enumerate(costs[1:]):
        used = 1 + costs[0] + sum(costs[1 + other] for other in blocks[-1])
        if width is not None and blocks[-1] and used + cost > width:
            blocks.append([])
        blocks[-1].append(index)
    return [_block(header, rows, block, first=number == 0) for number, block in enumerate(blocks)]


def _block(
    header: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], Sequence[str]]], block: Sequence[int], *, first: bool
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column(header[0], no_wrap=True)
    for index in block:
        table.add_column(header[1 + index], justify="right", overflow="fold")
    for row, texts in rows:
        absent = row["status"] not in {"complete", "reported"}
        if first or not absent:
            cells = [Text(texts[index], style="dim" if absent else "") for index in block]
            table.add_row(Text(row["tokenizer"]["name"]), *cells)
    return table


def _short_texts(board: Board, row: Mapping[str, Any]) -> list[str]:
    """Return a row's cells without the reason of a failure, which is a sentence, and with short sources."""
    texts = _texts(board, row)
    if row["status"] == "failed":
        return ["failed" if text.startswith("failed: ") else text for text in texts]
    if _failed(row):  # said once a row, in a column of its own
        texts = [text.removesuffix(f" ({_failed(row)} missing)") for text in texts]
    return [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in texts]


def _failed(row: Mapping[str, Any]) -> int:
    return int(row.get("samples", {}).get("failed", 0))


def _costs(header: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> list[int]:
    """Return how many characters each column takes with its padding and border."""
    from rich.cells import cell_len

    names = [str(row["tokenizer"]["name"]) for row, _ in rows]
    columns = [names, *(list(column) for column in zip(*(texts for _, texts in rows), strict=True))]
    return [
        3 + max(cell_len(line) for text in (title, *column) for line in text.split("\n"))
        for title, column in zip(header, columns, strict=True)
    ]


def _header(board: Board) -> list[str]:
    origin = ["origin"] if board.mixed else []
    speed = ["enc/s", "dec/s"] if board.timed else []
    return ["tokenizer", *origin, *(_heading(board, column) for column in board.columns), *speed]


def _heading(board: Board, column: str) -> str:
    cell = next((row["metrics"][column] for row in board.rows if column in row.get("metrics", {})), None)
    if cell is None:
        return column
    arrow = {True: " ↑", False: " ↓", None: ""}[cell["higher_is_better"]]
    return f"{column}{arrow}" + (f" ({cell['unit']})" if cell["unit"] else "")


def _texts(board: Board, row: Mapping[str, Any]) -> list[str]:
    """Return the row's cells as shown; an absent run says why in its first cell."""
    width = len(board.columns) + 2
    if board.mixed and row["status"] != "reported":
        return ["measured", *_texts(replace(board, rows=(row,)), row)]
    if row["status"] == "reported":
        source = f"reported: {row['source']}, {row['date']}"
        return [
            source,
            *(_cell_text(row["metrics"].get(column)) for column in board.columns),
            *([""] * 2 * board.timed),
        ]
    if row["status"] != "complete":
        why = row.get("state", row["status"])
        return [f"not run: {why}" if row["status"] == "not run" else f"failed: {row['reason']}", *[""] * (width - 1)]
    texts = [_cell_text(row["metrics"].get(column)) for column in board.columns]
    timing = row["timing"]
    for name in _TIMES[:2]:
        seconds = timing[name]
        texts.append(_speed(1 / seconds) if seconds else "–")
    return texts


def _speed(rate: float) -> str:
    """Return three digits of a rate, never as a power of ten."""
    return f"{rate:.3g}" if rate < 100 else f"{float(f'{rate:.3g}'):,.0f}"


def _cell_text(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["value"] is None:
        return "–"
    text = cell.get("text") or f"{cell['value']:.{cell['decimals']}f}"
    if "measured_difference" in cell:
        text += f" (measured {cell['measured_difference']:+.{cell['decimals']}f})"
    if not cell.get("verified", True):
        text += " (?)"
    if cell["ci95"] is not None and cell["level"] and cell["higher_is_better"] is not None:
        text += f" ±{(cell['ci95'][1] - cell['ci95'][0]) / 2:.{max(1, cell['decimals'] - 1)}f}"
    lost = cell["n_failed"] + cell["n_undefined"]
    return f"{text} ({lost} missing)" if lost else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
