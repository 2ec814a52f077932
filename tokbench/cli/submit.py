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
    """Validate results (schema, protocol, coverage, size, no folders or user names) and copy them. Exit 1: some may not.

    A few kept samples (`tokbench run --keep-samples`) go with them, for the boards' galleries.
    """
    from tokbench.compare import find
    from tokbench.gallery import kept_samples
    from tokbench.submit import SAMPLES_CAP, pack, packed_samples, problems

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
            if wrong:
                continue
            typer.echo(f"{name}: fine" if check else str(pack(entry, to)))
            kept, packed = len(kept_samples(entry.place)), len(packed_samples(entry))
            if kept:
                cap = f"; {SAMPLES_CAP / 1e6:g} MB are the most" if packed < kept else ""
                licence = "they are the dataset's: see that its licence lets you publish them"
                typer.echo(f"{name}: {packed} of {kept} kept samples go with it{cap} ({licence})", err=True)
    if failed:
        raise typer.Exit(1)
