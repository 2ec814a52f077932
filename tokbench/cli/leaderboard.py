"""`tokbench leaderboard`: write the boards of a result store as CSV and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokbench.cli import options


def leaderboard(
    output: options.Output = Path("results"),
    to: Annotated[
        Path | None, typer.Option("--to", help="Directory for leaderboard.csv and .md.  [default: the store]")
    ] = None,
    suite: options.Suites = None,
    as_json: options.Json = False,
) -> None:
    """Print the boards of a result store and write leaderboard.csv and leaderboard.md. Protocols are never mixed."""
    import json
    from fnmatch import fnmatchcase

    from tokbench.cli.run import print_boards
    from tokbench.leaderboard import boards, to_csv, to_markdown
    from tokbench.store import Store, write_text

    results = [r for r in Store(output).results() if not suite or any(fnmatchcase(r["suite"], s) for s in suite)]
    found = boards(results)
    place = to or output
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "leaderboard.csv", to_csv(found))
    write_text(place / "leaderboard.md", to_markdown(found))
    if as_json:
        typer.echo(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False))
    else:
        print_boards(results)
    typer.echo(f"wrote {place / 'leaderboard.csv'} and {place / 'leaderboard.md'}", err=True)
