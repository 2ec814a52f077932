"""`tokbench run`: score tokenizers on suites and print the boards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from tokbench.cli import options
from tokbench.errors import UsageError

if TYPE_CHECKING:
    from tokbench.leaderboard import Board
    from tokbench.session import Request


_FAILURES = 5  # failed samples that are named below a board


def run(
    tokenizer: options.Tokenizers = None,
    suite: options.Suites = None,
    dataset: options.Datasets = None,
    metric: options.Metrics = None,
    output: options.Output = Path("results"),
    limit: options.Limit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    batch_size: options.BatchSizeText = "auto",
    seed: options.Seed = 0,
    workers: options.Workers = 0,
    decode_workers: options.DecodeWorkers = "auto",
    shard: options.ShardShare = None,
    shard_size: options.ShardSize = 1000,
    rerun: options.RerunText = "failed",
    offline: options.Offline = False,
    fail_fast: options.FailFast = False,
    keep_samples: options.KeepSamples = None,
    as_json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Score tokenizers on suites; with no arguments, a few minutes of everything. Run again to resume.

    Exit code 0: done, also where something is absent, which the table says; 1: a tokenizer failed; 2: wrong use.
    """
    del config
    request = make_request(
        tokenizer=tokenizer, suite=suite, dataset=dataset, metric=metric, output=output, limit=limit, device=device,
        dtype=dtype, batch_size=batch_size, seed=seed, workers=workers, decode_workers=decode_workers, shard=shard,
        shard_size=shard_size, rerun=rerun, offline=offline, fail_fast=fail_fast, keep_samples=keep_samples,
    )  # fmt: skip
    from tokbench.cli.progress import Progress
    from tokbench.session import run as run_session

    with Progress() as progress:
        report = run_session(request, progress)
    if as_json:
        typer.echo(json.dumps(list(report.results), indent=1, sort_keys=True, ensure_ascii=False))
    else:
        from tokbench.leaderboard import boards

        print_boards(boards(report.results))
        for result in report.results:
            if result["status"] == "not run":
                name, state, fix = result["tokenizer"]["name"], result["state"], result["fix"]
                typer.echo(f"{name}: {state}: {fix or result['reason']}", err=True)
        for notice in report.notices:
            typer.echo(notice, err=True)
        if report.pending:
            typer.echo(
                f"{report.pending} run(s) wait for shards of other machines; `tokbench run` merges them at the end",
                err=True,
            )
        where = shlex.quote(str(output))
        typer.echo(
            f"results are in {where}; `tokbench leaderboard -o {where} --html` writes CSV, Markdown, HTML", err=True
        )
    if report.failed:
        raise typer.Exit(1)


def make_request(
    *,
    tokenizer: list[str] | None,
    suite: list[str] | None,
    dataset: list[str] | None,
    metric: list[str] | None,
    output: Path,
    limit: int | None,
    device: str,
    dtype: str,
    batch_size: str,
    seed: int,
    workers: int,
    decode_workers: str,
    shard: str | None,
    shard_size: int,
    rerun: str,
    offline: bool,
    fail_fast: bool,
    keep_samples: list[str] | None = None,
) -> Request:
    """Check the options and build the request.

    Raises:
        UsageError: A value outside its choices.
    """
    for option, value, choices in (
        ("--rerun", rerun, ("never", "failed", "all")),
        ("--dtype", dtype, ("float32", "bfloat16", "float16")),
    ):
        if value not in choices:
            raise UsageError(f"{option} {value}: choose {', '.join(choices)}")
    from tokbench.gallery import parse_wanted
    from tokbench.session import Request, Rerun

    return Request(
        suites=tuple(suite or ("quick",)),
        tokenizers=tuple(tokenizer or ()),
        datasets=tuple(dataset or ()),
        metrics=tuple(metric or ()),
        output=output,
        limit=limit,
        device=device,
        dtype=dtype,
        batch_size=options.count_or_auto(batch_size, "--batch-size"),  # type: ignore[arg-type]
        seed=seed,
        workers=workers,
        decode_workers=options.count_or_auto(decode_workers, "--decode-workers"),  # type: ignore[arg-type]
        shard=shard,
        shard_size=shard_size,
        rerun=cast("Rerun", rerun),
        offline=offline,
        fail_fast=fail_fast,
        keep_samples=parse_wanted(keep_samples or ()),
    )


def print_boards(found: Iterable[Board]) -> None:
    """Print boards as tables to stdout: in the terminal's width, or in one piece each where it is not a terminal."""
    from rich.text import Text

    from tokbench.cli.tables import print_tables, terminal_width
    from tokbench.renderings import to_tables

    for board in found:
        print_tables([Text(board.title, style="bold"), *to_tables(board, terminal_width())])
        for line in _failures(board):
            typer.echo(f"  {line}", err=True)
        for note in board.notes:
            typer.echo(f"  {note}", err=True)


def _failures(board: Board) -> list[str]:
    """Return a line for each of the first samples that failed, with the tokenizers it failed for."""
    lines = [f"{row['tokenizer']['name']}: failed: {row['reason']}" for row in board.rows if row["status"] == "failed"]
    done = [row for row in board.rows if row["status"] == "complete"]
    found: dict[tuple[str, str], list[str]] = {}
    for row in done:
        for item in row.get("samples", {}).get("failures", ()):
            found.setdefault((item["key"], item["reason"]), []).append(str(row["tokenizer"]["name"]))
    for (key, reason), names in list(found.items())[:_FAILURES]:
        who = "every tokenizer" if len(names) == len(done) else ", ".join(names)
        lines.append(f"failed: {key}: {reason} ({who})")
    if len(found) > _FAILURES:
        lines.append(f"failed: {len(found) - _FAILURES} more; the results' rows.parquet say which and why")
    return lines
