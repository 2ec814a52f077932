"""`tokbench run`: score tokenizers on suites and print the boards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from tokbench.cli import options
from tokbench.errors import UsageError

if TYPE_CHECKING:
    from tokbench.session import Request


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
    """Score tokenizers on suites; with no arguments, a few minutes of everything. Run again to resume."""
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
        print_boards(report.results)
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
        typer.echo(f"results are in {output}; `tokbench leaderboard -o {output}` writes CSV and Markdown", err=True)
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


def print_boards(results: object) -> None:
    """Print results as tables to stdout, wide enough for every column when it is not a terminal."""
    from rich.console import Console

    from tokbench.leaderboard import boards, to_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    for board in boards(results):  # type: ignore[arg-type]
        console.print(to_table(board))
        for note in board.notes:
            typer.echo(f"  {note}", err=True)
