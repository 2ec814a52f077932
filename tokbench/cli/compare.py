"""`tokbench compare BASE CANDIDATE`: the regression check, and with `--gate` the one a CI gates on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokbench.cli import options
from tokbench.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from tokbench.gate import Gate
    from tokbench.verdicts import Comparison, PairReport


def compare(
    base: Annotated[str, typer.Argument(help="Result directory, store, or STORE:NAME, e.g. 'main:jpeg?quality=50'.")],
    candidate: Annotated[str, typer.Argument(help="The same, of what is to be judged.")],
    gate: Annotated[
        Path | None, typer.Option("--gate", envvar="TOKBENCH_GATE", help="TOML file that says what may get worse.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option("--suite", "-s", help="Only this suite; repeat.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Only this metric or column; repeat.")
    ] = None,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Samples to list for each column that is judged.")] = 5,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write Markdown for a pull request.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with the worst samples of each judged column.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare two results row by row. Exit code 0: nothing is worse; 1: something is; 2: they cannot be compared."""
    from tokbench.compare import compare as judge
    from tokbench.compare import find
    from tokbench.gate import Gate

    found = judge(
        find(base),
        find(candidate),
        Gate() if gate is None else read_gate(gate),
        columns=tuple(metric or ()),
        suites=tuple(suite or ()),
        worst=worst,
    )
    from tokbench.store import write_text

    if markdown is not None:
        from tokbench.wording import to_markdown

        write_text(markdown, to_markdown(found))
    if html is not None:
        from tokbench.report import to_html

        write_text(html, to_html(found))
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def read_gate(path: Path) -> Gate:
    """Read a gate file. Raises UsageError when it is not there, no TOML, or has an unknown key."""
    from tokbench.gate import parse_gate

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--gate {path}: {error}") from error
    return parse_gate(table)


def to_json(found: Comparison) -> dict[str, object]:
    """Return a comparison as `--json` prints it."""
    pairs = [{**asdict(pair), "verdict": pair.verdict} for pair in found.pairs]
    return {"exit_code": found.exit_code, "pairs": pairs, "notes": list(found.notes)}


def _print(found: Comparison) -> None:
    from rich.text import Text

    from tokbench.cli.tables import print_tables, terminal_width
    from tokbench.wording import remarks, title

    for pair in found.pairs:
        print_tables([Text(f"{title(pair)}: {pair.verdict}", style="bold"), *_tables(pair, terminal_width())])
        lines = [Text(f"  {line}", style=style) for style, line in [*_notes(pair), *remarks(pair)]]
        lines += [Text(f"  {r.column} lost most on {r.key}: {r.base:.6g} -> {r.candidate:.6g}") for r in pair.regressed]
        print_tables(lines)
    for note in found.notes:
        typer.echo(note, err=True)


def _tables(pair: PairReport, width: int | None) -> list[Table]:
    """Return a line a column as one table, or as two that a narrow terminal holds: what is found, and how sure that is."""
    from tokbench.cli.tables import natural_width
    from tokbench.wording import HEADER, cells

    if not pair.columns:
        return []
    rows = [[*cells(column)[:-1], cells(replace(column, note=""))[-1]] for column in pair.columns]
    styles = {"worse": "red", "lost": "red", "better": "green", "unclear": "yellow"}
    shown = [styles.get(column.verdict, "") if column.judged else "dim" for column in pair.columns]
    everything = list(range(len(HEADER)))
    whole = _table(rows, shown, everything)
    if width is None or natural_width(whole) <= width:
        return [whole]
    found, sure = [0, 1, 2, 3, 7], [0, 4, 5, 6]
    return [_table(rows, shown, found), _table(rows, shown, sure)]


def _table(rows: Sequence[Sequence[str]], styles: Sequence[str], columns: Sequence[int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from tokbench.wording import HEADER

    table = Table()
    for index in columns:
        table.add_column(HEADER[index], justify="left" if index in {0, len(HEADER) - 1} else "right", overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*(Text(row[index], style=style) for index in columns))
    return table


def _notes(pair: PairReport) -> list[tuple[str, str]]:
    """Return what is said of single columns, each sentence once with the columns it is said of."""
    said: dict[str, list[str]] = {}
    for column in pair.columns:
        if column.note:
            said.setdefault(column.note, []).append(column.column)
    return [("dim", f"{', '.join(columns)}: {note}") for note, columns in said.items()]
