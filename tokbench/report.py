"""A comparison -> one self-contained HTML page: the verdicts, and the samples that lost most with their pictures or sound."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokbench import __version__
from tokbench.errors import StoreError
from tokbench.gallery import FOLDER, Kept, kept_samples
from tokbench.markup import render, script_json
from tokbench.pictures import BUDGET, Media, Shown, shown
from tokbench.store import read_json
from tokbench.verdicts import ColumnReport, Comparison, PairReport, WorstRow
from tokbench.wording import HEADER, cells, headline, remarks, title

_FULL = "The page holds no more pictures."


def to_html(found: Comparison, *, budget: int = BUDGET) -> str:
    """Return the page: a section a pair, and in it the samples that lost most in each judged column.

    Pictures are those that both sides kept (`tokbench run --keep-samples`); where one did not, the command that keeps them
    is given. Names and keys reach the page as text only, see `tokbench.page.to_html`.
    """
    media = Media(budget)
    viewers: list[dict[str, Any]] = []
    pairs = [_pair(pair, media, viewers) for pair in found.pairs]
    values = {
        "title": f"tokbench compare: {headline(found)}",
        "verdict": headline(found),
        "version": __version__,
        "header": HEADER,
        "pairs": pairs,
        "notes": found.notes,
        "media": script_json(media.uris),
        "viewers": script_json(viewers),
    }
    return render("report.html.j2", ("boards.css", "viewer.css", "report.css"), ("viewer.js", "report.js"), values)


def _pair(pair: PairReport, media: Media, viewers: list[dict[str, Any]]) -> dict[str, Any]:
    kept, broken = _kept(pair)
    lost: dict[str, list[dict[str, Any]]] = {}
    gone: dict[str, list[str]] = {}
    for row in pair.worst:
        column = next(item for item in pair.columns if item.column == row.column)
        entry = _row(row, column)
        without = [side for side in ("base", "candidate") if row.key not in kept[side]]
        if without:
            entry["why"] = f"not kept by the {' and the '.join(without)}; the command below keeps it"
            for side in without:
                gone.setdefault(side, []).append(row.key)
        else:
            entry |= _viewer(pair, row, kept, media, viewers)
        lost.setdefault(row.column, []).append(entry)
    return {
        "title": title(pair),
        "verdict": pair.verdict,
        "columns": [{"cells": cells(column), "bad": column.fails} for column in pair.columns],
        "remarks": [{"bad": style == "red", "text": text} for style, text in remarks(pair)],
        "lost": [{"column": name, "rows": rows} for name, rows in lost.items()],
        "commands": [_command(side, place, gone[side]) for side, place in _places(pair).items() if side in gone],
        "broken": broken,
    }


def _places(pair: PairReport) -> dict[str, Path]:
    return dict(zip(("base", "candidate"), map(Path, pair.places), strict=True))


def _kept(pair: PairReport) -> tuple[dict[str, dict[str, Kept]], list[str]]:
    found: dict[str, dict[str, Kept]] = {"base": {}, "candidate": {}}
    broken = []
    for side, place in _places(pair).items():
        try:
            found[side] = {item.key: item for item in kept_samples(place)} if pair.worst else {}
        except StoreError as error:
            broken.append(f"{side}: {error}")
    return found, broken


def _row(row: WorstRow, column: ColumnReport) -> dict[str, Any]:
    digits = column.decimals
    return {
        "key": row.key,
        "text": f"{row.base:.{digits}f} → {row.candidate:.{digits}f} ({row.candidate - row.base:+.{digits}f})"
        + (f" {column.unit}" if column.unit else ""),
        "viewer": None,
        "why": "",
        "about": "",
    }


def _viewer(
    pair: PairReport,
    row: WorstRow,
    kept: Mapping[str, Mapping[str, Kept]],
    media: Media,
    viewers: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the place of a row's pictures among the page's viewers, or why there are none."""
    sides: dict[str, tuple[Shown, Shown]] = {}
    for side, place in _places(pair).items():
        item = kept[side][row.key]
        try:
            original, reconstruction = (
                shown(place / FOLDER / name, len(item.frames)) for name in (item.original, item.reconstruction)
            )
        except StoreError as error:
            return {"why": f"{side}: {error}"}
        sides[side] = (original, reconstruction)
    if sides["base"][0].content != sides["candidate"][0].content:
        return {"why": "the two sides kept different originals of this sample"}
    uris = [sides["base"][0].uri, sides["base"][1].uri, sides["candidate"][1].uri]
    if media.used + media.cost(uris) > media.budget:
        return {"why": _FULL}
    first = media.add(uris[0])
    panes: list[dict[str, Any]] = [{"title": "original", "file": first, "text": ""}]
    for side, name in (("base", pair.base), ("candidate", pair.candidate)):
        panes.append({"title": side, "text": name, "file": media.add(sides[side][1].uri), "minus": first})
    viewers.append({"kind": kept["base"][row.key].modality, "panes": panes})
    return {"viewer": len(viewers) - 1, "about": sides["base"][0].about}


def _command(side: str, place: Path, keys: Sequence[str]) -> dict[str, str]:
    """Return the command that keeps the rows of a result, from the one that made it where that is known."""
    keep = [word for key in dict.fromkeys(keys) for word in ("--keep-samples", f"key={key}")]
    # <store>/<tokenizer>/<suite>@<protocol>/<key>
    store = str(place.parents[2] if len(place.parents) > 2 else place.resolve().parents[2])
    result = read_json(place / "result.json")
    argv = [str(word) for word in result.get("provenance", {}).get("argv") or ()]
    if len(argv) > 1 and argv[1] == "run":
        words = ["tokbench", "run", *_without(argv[2:], ("-o", "--output", "--keep-samples"))]
        note = "the command that made it, with the folders of its arguments cut: put yours there."
    else:
        suite, _, data = str(result["suite"]).partition("+")
        words = [
            "tokbench",
            "run",
            "-s",
            suite,
            *(["-d", data] if data else []),
            "-t",
            str(result["tokenizer"]["name"]),
        ]
        note = "with the metrics and options it was made with."
    return {"side": side, "command": shlex.join([*words, "-o", store, *keep]), "note": note}


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Drop options with their values, written apart or with `=`."""
    out: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.partition("=")[0] not in options:
            out.append(word)
    return out
