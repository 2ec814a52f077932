"""Tables for people and for programs: fitted to the terminal's width, or tab-separated where the output is a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_GAP = "  "
_LAST = 32  # columns that a narrow terminal leaves out go until the last one has this many characters


def print_list(rows: Sequence[Mapping[str, Any]], less: Sequence[str] = ()) -> None:
    """Print rows of one set of keys.

    To a terminal: aligned under a heading, cut to its width; where that is too little, the columns `less` are left out in this
    order, and said to be. To a pipe or a file: every value in full, separated by tabs, without a heading, as `cut` and `awk`
    want it.
    """
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(_flat(value) for value in row.values()))
        return
    lines, left_out = fitted(rows, shutil.get_terminal_size().columns, less)
    typer.secho(lines[0], dim=True)
    for line in lines[1:]:
        typer.echo(line)
    if left_out:
        typer.secho(f"not shown in this width: {', '.join(left_out)}; --json has all", err=True, dim=True)


def fitted(rows: Sequence[Mapping[str, Any]], width: int, less: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return a heading and a line a row, none longer than `width` unless the first column is, and the columns left out.

    The first column is never cut: it holds names, to be copied.
    """
    from rich.cells import cell_len, set_cell_size

    keys, left_out = list(rows[0]), []
    widths = {key: max(cell_len(text) for text in (key, *(_flat(row[key]) for row in rows))) for key in keys}

    def room() -> int:
        return width - sum(widths[key] + len(_GAP) for key in keys[:-1])

    for key in less:
        if room() >= min(_LAST, widths[keys[-1]]):
            break
        keys.remove(key)
        left_out.append(key)
    last = max(room(), 8)
    lines = []
    for row in ({key: key for key in keys}, *rows):
        cells = [set_cell_size(_flat(row[key]), widths[key]) for key in keys[:-1]]
        text = _flat(row[keys[-1]])
        cells.append(text if cell_len(text) <= last else f"{set_cell_size(text, last - 1).rstrip()}…")
        lines.append(_GAP.join(cells).rstrip())
    return lines, left_out


def print_tables(tables: Sequence[Table | Text]) -> None:
    """Print rich tables and lines: to a terminal in its width, to a pipe each as wide as it is."""
    from rich.console import Console

    console = Console()
    for table in tables:
        (console if console.is_terminal else Console(width=natural_width(table))).print(table)


def terminal_width() -> int | None:
    """Return how wide the terminal is, or None where the output is a pipe or a file."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else None


def natural_width(table: Table | Text) -> int:
    """Return the width at which nothing is wrapped."""
    from rich.console import Console

    return max(Console(width=100_000).measure(table).maximum, 1)


def _flat(value: object) -> str:
    return " ".join(str(value).split())
