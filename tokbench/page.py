"""Boards -> one self-contained HTML page: style, script, data and plots inside, nothing fetched, same bytes for same input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokbench import __version__
from tokbench.bdrate import FEWEST, bd_rate
from tokbench.gallery import FOLDER
from tokbench.leaderboard import Board, codebook
from tokbench.markup import render, script_json
from tokbench.pictures import BUDGET, Media, gallery
from tokbench.plots import MOST_POINTS, Point, scatter
from tokbench.ranks import group_of

_KINDS = {"none": "reference", "": "not stated"}


def to_html(found: Sequence[Board], title: str = "tokbench leaderboards", *, budget: int = BUDGET) -> str:
    """Return the page, with the kept samples of measured rows in up to `budget` bytes, shared between the boards.

    Names, keys and reasons come from anywhere: text reaches the page through Jinja's escaping, through JSON whose `<`, `>`
    and `&` are written as escapes, and from there through `textContent` only. A content security policy forbids the rest.
    """
    media = Media(budget)
    galleries = _galleries(found, media)
    data = [
        {**_data(board), **({"gallery": shown} if shown else {})} for board, shown in zip(found, galleries, strict=True)
    ]
    sections = [
        {**_section(index, board), "gallery": shown}
        for index, (board, shown) in enumerate(zip(found, galleries, strict=True))
    ]
    values = {
        "title": title,
        "version": __version__,
        "boards": sections,
        "data": script_json(data),
        "media": script_json(media.uris),
    }
    return render("boards.html.j2", ("boards.css", "viewer.css"), ("viewer.js", "boards.js"), values)


def _galleries(found: Sequence[Board], media: Media) -> list[dict[str, Any] | None]:
    """Return what each board shows of kept samples; what one board does not use goes to those behind it."""
    out: list[dict[str, Any] | None] = []
    with_samples = sum(any((place / FOLDER).is_dir() for place in board.places.values()) for board in found)
    for board in found:
        columns = {}
        for column in board.columns:
            cell = next((row["metrics"][column] for row in board.rows if column in row.get("metrics", {})), None)
            if cell is not None and cell["where"] == "row" and cell["higher_is_better"] is not None:
                columns[column] = (cell["unit"], int(cell["decimals"]))
        complete = [row["tokenizer"] for row in board.rows if row["status"] == "complete"]
        # References (`resize`) last: they are the least worth a look.
        names = [str(about["name"]) for about in sorted(complete, key=lambda about: about["kind"] == "none")]
        places = {name: board.places[name] for name in names if name in board.places}
        if not any((place / FOLDER).is_dir() for place in places.values()):
            out.append(None)
            continue
        out.append(gallery(places, columns, media, (media.budget - media.used) // max(1, with_samples)))
        with_samples -= 1
    return out


def _section(index: int, board: Board) -> dict[str, Any]:
    spec = board.spec
    assert spec is not None
    sample = next((row for row in board.rows if row["status"] != "reported"), None)
    reported = sorted(
        {(row["preset"], row["source"], row["date"]) for row in board.rows if row["status"] == "reported"}
    )
    return {
        "id": f"board-{index}",
        "title": spec.title if not board.protocol else f"{spec.title} · {board.protocol[:8]}",
        "modality": board.modality,
        "summary": spec.summary,
        "count": len(board.rows),
        "protocol": board.protocol,
        "settings": ""
        if sample is None
        else json.dumps(sample["protocol"], indent=1, sort_keys=True, ensure_ascii=False),
        "sources": [{"preset": preset, "source": source, "date": date} for preset, source, date in reported],
        "notes": board.notes,
        "sort": spec.sort,
        "budget": "" if spec.budget is None else spec.budget.column,
        "many": f"No plots: more than {MOST_POINTS} rows." if spec.plots and len(board.rows) > MOST_POINTS else "",
        "bd": _bd_rates(board),
        "plots": [plot for entry in spec.plots if (plot := _plot(board, entry.x, entry.y, entry.log))],
    }


_ANCHORS = ("jpeg", "h264", "opus")


def _bd_rates(board: Board) -> list[dict[str, str]]:
    """Return the BD-rate of every measured curve of operating points against the first anchor on the board, per plot."""
    assert board.spec is not None
    out = []
    for entry in board.spec.plots:
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in board.rows:
            x, y = (row.get("metrics", {}).get(column) for column in (entry.x, entry.y))
            if row["status"] == "complete" and x and y and x["value"] is not None and y["value"] is not None:
                quality = y["value"] if y["higher_is_better"] else -y["value"]
                name = str(row["tokenizer"]["name"]).partition("?")[0]
                curves.setdefault(name, []).append((x["value"], quality))
        anchor = next((name for name in _ANCHORS if len(curves.get(name, ())) >= FEWEST), None)
        for name in sorted(curves):
            value = None if anchor in {None, name} else bd_rate(curves[str(anchor)], curves[name])
            if value is not None:
                out.append({"name": name, "anchor": str(anchor), "column": entry.y, "value": f"{value:+.1f} %"})
    return out


def _plot(board: Board, x: str, y: str, log: bool) -> str:
    points, direction, units = [], None, {x: "", y: ""}
    for row in board.rows:
        a, b = (row.get("metrics", {}).get(column) for column in (x, y))
        if a is None or b is None or a["value"] is None or b["value"] is None:
            continue
        name = str(row["tokenizer"]["name"])
        direction = b["higher_is_better"]
        units = {x: a["unit"], y: b["unit"]}
        points.append(Point(a["value"], b["value"], name, name.partition("?")[0], row["status"] == "reported"))

    def label(column: str) -> str:
        return f"{column} ({units[column]})" if units[column] else column

    return scatter(points, x=label(x), y=label(y), log=log, higher_is_better=direction)


def _data(board: Board) -> dict[str, Any]:
    assert board.spec is not None
    columns = []
    for column in board.columns:
        cell = next((row["metrics"][column] for row in board.rows if column in row.get("metrics", {})), None)
        columns.append(
            {
                "name": column,
                "unit": "" if cell is None else cell["unit"],
                "higher": None if cell is None else cell["higher_is_better"],
                "decimals": 4 if cell is None else cell["decimals"],
                "about": "" if cell is None else cell.get("description", ""),
            }
        )
    return {
        "columns": columns,
        "ranked": any(rank.place is not None for rank in board.ranks.values()),
        "grouped": board.spec.budget is not None,
        "mixed": board.mixed,
        "rows": [_row(board, row) for row in board.rows],
    }


def _row(board: Board, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script shows of a row; empty things are left out, which halves a long board."""
    assert board.spec is not None
    about = row["tokenizer"]
    name = str(about["name"])
    rank = board.ranks.get(name) if row["status"] != "reported" else None
    timing = row.get("timing", {})
    out: dict[str, Any] = {
        "t": name,
        "k": _KINDS.get(about["kind"], about["kind"]),
        "l": about.get("licence") or "",
        "o": "reported" if row["status"] == "reported" else "measured",
        "b": codebook(row),
        "g": group_of(row, board.spec),
        "c": [_cell(row.get("metrics", {}).get(column)) for column in board.columns],
        "e": timing.get("encode_seconds_per_sample"),
        "d": timing.get("decode_seconds_per_sample"),
    }
    if row["status"] == "not run":
        out["x"] = f"not run: {row['state']}" + (f" ({row['reason']})" if row["reason"] else "")
    elif row["status"] == "failed":
        out["x"] = f"failed: {row['reason']}"
    if row["status"] == "reported":
        out["s"] = f"{row['source']}, read {row['date']}, preset {row['preset']}"
        out["n"] = row["note"]
    if rank is not None:
        out["r"], out["w"], out["i"] = rank.place, rank.reason, rank.tied
    return {key: value for key, value in out.items() if value not in ("", None, False)}


def _cell(cell: Mapping[str, Any] | None) -> object:
    """Return null, or [value, what to say on hover, text behind the value, the value as its source writes it]."""
    if cell is None:
        return None
    if cell["value"] is None:
        return [None, f"{cell['status']}: {cell['reason']}", ""]
    digits = int(cell["decimals"])
    said, behind = [], ""
    if cell["n"] is not None:
        said.append(f"n = {cell['n']}")
    if cell["ci95"] is not None:
        said.append(f"95 % interval {cell['ci95'][0]:.{digits}f} to {cell['ci95'][1]:.{digits}f}")
    for count, word in ((cell["n_failed"], "failed"), (cell["n_undefined"], "undefined")):
        if count:
            said.append(f"{count} {word}")
    if cell.get("upper") is not None:
        said.append("sources differ")
    if "measured_difference" in cell:
        behind += f" (measured {cell['measured_difference']:+.{digits}f})"
    if not cell.get("verified", True):
        behind += " (?)"
        said.append("not verified in its source")
    out = [cell["value"], "; ".join(said), behind, cell.get("text", "")]
    while out[-1] == "":
        out.pop()
    return out
