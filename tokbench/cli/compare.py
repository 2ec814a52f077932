"""`tokbench compare BASE CANDIDATE`: the regression check, and with `--gate` the one a CI gates on."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokbench.cli import options
from tokbench.errors import UsageError

if TYPE_CHECKING:
    from tokbench.compare import ColumnReport, Comparison, Gate, PairReport


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
    worst: Annotated[int, typer.Option("--worst", min=0, help="Samples to list for each column that got worse.")] = 5,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write Markdown for a pull request.")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare two results row by row. Exit code 0: nothing is worse; 1: something is; 2: they cannot be compared."""
    from tokbench.compare import Gate, find
    from tokbench.compare import compare as judge

    found = judge(
        find(base),
        find(candidate),
        Gate() if gate is None else read_gate(gate),
        columns=tuple(metric or ()),
        suites=tuple(suite or ()),
        worst=worst,
    )
    if markdown is not None:
        from tokbench.store import write_text

        write_text(markdown, to_markdown(found))
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def read_gate(path: Path) -> Gate:
    """Read a gate file. Raises UsageError when it is not there, no TOML, or has an unknown key."""
    from tokbench.compare import parse_gate

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--gate {path}: {error}") from error
    return parse_gate(table)


def to_json(found: Comparison) -> dict[str, object]:
    """Return a comparison as `--json` prints it."""
    pairs = [{**asdict(pair), "verdict": pair.verdict} for pair in found.pairs]
    return {"exit_code": found.exit_code, "pairs": pairs, "notes": list(found.notes)}


def to_markdown(found: Comparison) -> str:
    """Return a comparison as Markdown for a pull request: the verdict first, one table a pair."""
    from tokbench.leaderboard import escape_markdown

    headline = {0: "no regression", 1: "regression", 2: "not comparable"}[found.exit_code]
    parts = [f"## tokbench: {headline}", ""]
    for pair in found.pairs:
        parts += [f"### {escape_markdown(_title(pair))}: {pair.verdict}", ""]
        if pair.columns:
            parts += ["| " + " | ".join(_HEADER) + " |", "| --- |" + " ---: |" * (len(_HEADER) - 2) + " --- |"]
            parts += ["| " + " | ".join(map(escape_markdown, _cells(column))) + " |" for column in pair.columns]
            parts.append("")
        lines = [line for _, line in _remarks(pair)]
        parts += [*(f"- {escape_markdown(line)}" for line in lines), ""]
        if pair.worst:
            parts += ["| lost most in | sample | base | candidate |", "| --- | --- | ---: | ---: |"]
            parts += [
                f"| {escape_markdown(r.column)} | {escape_markdown(r.key)} | {r.base:.6g} | {r.candidate:.6g} |"
                for r in pair.worst
            ]
            parts.append("")
    parts += [f"- {escape_markdown(note)}" for note in found.notes]
    return "\n".join(parts).rstrip() + "\n"


_HEADER = ("column", "base", "candidate", "difference", "95 % interval", "allowed", "n", "verdict")


def _title(pair: PairReport) -> str:
    names = pair.base if pair.base == pair.candidate else f"{pair.base} -> {pair.candidate}"
    return f"{names} on {pair.suite}"


def _cells(column: ColumnReport) -> list[str]:
    digits = column.decimals

    def number(value: float | None, sign: str = "") -> str:
        return "–" if value is None else f"{value:{sign}.{digits}f}"

    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    interval = "" if column.ci95 is None else f"{number(column.ci95[0], '+')} .. {number(column.ci95[1], '+')}"
    word = column.verdict if column.judged else f"({column.verdict})"
    return [
        column.column + arrow,
        number(column.base),
        number(column.candidate),
        number(column.difference, "+"),
        interval,
        f"{column.tolerance:g}" if column.higher_is_better is not None else "",
        str(column.n) if column.n else "",
        word + (f": {column.note}" if column.note else ""),
    ]


def _remarks(pair: PairReport) -> list[tuple[str, str]]:
    """Return (style, line) of everything but the columns."""
    lines = [("red", f"not comparable: {field}") for field in pair.refused]
    lines += [("red", line) for line in pair.problems]
    for item in pair.speed:
        sure = "" if item.p is None else f", p {item.p:.2g}"
        text = f"{item.phase}: {item.base:.3g} s -> {item.candidate:.3g} s a sample, ratio {item.ratio:.2f}{sure}"
        lines.append(("red" if item.fails else "", text))
    if not pair.refused:
        words = {
            "equal": "the encoder emits the same tokens on the probe",
            "differs": "the encoder emits other tokens on the probe",
            "unknown": "token digest unknown",
        }
        lines.append(("", words[pair.digest]))
    lines += [("", f"changed: {line}") for line in pair.changes]
    return [*lines, *(("", note) for note in pair.notes)]


def _print(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    styles = {"worse": "red", "lost": "red", "better": "green", "unclear": "yellow"}
    for pair in found.pairs:
        console.print(Text(f"{_title(pair)}: {pair.verdict}", style="bold"))
        if pair.columns:
            table = Table()
            for index, title in enumerate(_HEADER):
                table.add_column(title, justify="left" if index in {0, len(_HEADER) - 1} else "right")
            for column in pair.columns:
                style = styles.get(column.verdict, "") if column.judged else "dim"
                table.add_row(*(Text(text, style=style) for text in _cells(column)))
            console.print(table)
        for style, line in _remarks(pair):
            console.print(Text(f"  {line}", style=style))
        for row in pair.worst:
            console.print(Text(f"  {row.column} lost most on {row.key}: {row.base:.6g} -> {row.candidate:.6g}"))
    for note in found.notes:
        typer.echo(note, err=True)
