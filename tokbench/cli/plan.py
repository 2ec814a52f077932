"""`tokbench plan`: what `run` would do, what is done, and which files are missing."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from tokbench.cli import options
from tokbench.cli.run import make_request


def plan(
    tokenizer: options.Tokenizers = None,
    suite: options.Suites = None,
    dataset: options.Datasets = None,
    metric: options.Metrics = None,
    output: options.Output = Path("results"),
    limit: options.Limit = None,
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    shard_size: options.ShardSize = 1000,
    as_json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Print the runs of a request with their state and content key; runs and downloads nothing."""
    del config
    request = make_request(
        tokenizer=tokenizer, suite=suite, dataset=dataset, metric=metric, output=output, limit=limit, device="cpu",
        dtype=dtype, batch_size="auto", seed=seed, workers=0, decode_workers="auto", shard=None, shard_size=shard_size,
        rerun="failed", offline=True, fail_fast=False,
    )  # fmt: skip
    from tokbench.plan import describe, notices
    from tokbench.session import plan_runs
    from tokbench.store import Store

    store = Store(output)
    rows = []
    runs = plan_runs(request)
    for run in runs:
        about = describe(run)
        about["shards_done"] = about["shards"] - len(store.missing(run))
        if about["state"] == "ready" and about["shards_done"] == about["shards"]:
            about["state"] = "done"
        rows.append(about)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("suite", "tokenizer", "files", "shards", "state", "key")
    for about in rows:
        shards = f"{about['shards_done']}/{about['shards']}"
        state = about["state"] if not about["reason"] else f"{about['state']}: {about['reason']}"
        cells = (about["suite"], about["tokenizer"], str(about["samples"]), shards, state, about["key"][:12])
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    for notice in notices(runs):
        typer.echo(notice, err=True)
    for fix in dict.fromkeys(about["fix"] for about in rows if about["fix"]):
        typer.echo(f"fix: {fix}", err=True)
