"""`tokbench submit RESULT`: check a result for publication and pack it for a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def submit(
    results: Annotated[list[str], typer.Argument(help="Result directory, store, or STORE:NAME; repeat.")],
    to: Annotated[Path, typer.Option("--to", help="Where results are collected.")] = Path("leaderboards/results"),
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong; copy nothing.")] = False,
) -> None:
    """Validate results (schema, protocol, coverage, size, no folders or user names) and copy them. Exit 1: some may not."""
    from tokbench.compare import find
    from tokbench.submit import pack, problems

    failed = False
    for text in results:
        for entry in find(text):
            name = f"{entry.name} on {entry.result['suite']}"
            if entry.result["status"] == "not run":
                typer.echo(f"{name}: {entry.result['state']}, left out", err=True)
                continue
            wrong = problems(entry)
            failed |= bool(wrong)
            for line in wrong:
                typer.echo(f"{name}: {line}", err=True)
            if not wrong:
                typer.echo(f"{name}: fine" if check else str(pack(entry, to)))
    if failed:
        raise typer.Exit(1)
