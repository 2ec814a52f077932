"""`tokbench plan`: what `run` would do, what is done, and which files are missing."""

from __future__ import annotations

import json
import os
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
    from tokbench.plan import describe, metrics_without_weights, notices
    from tokbench.registry import expand_each
    from tokbench.session import left_out, plan_runs
    from tokbench.store import Store
    from tokbench.weights import OFFLINE, ONLINE

    store = Store(output)
    rows = []
    asked = expand_each(request.tokenizers)
    runs = plan_runs(request, asked)
    for run in runs:
        about = describe(run)
        about["shards_done"] = about["shards"] - len(store.missing(run))
        if about["state"] == "ready" and about["shards_done"] == about["shards"]:
            about["state"] = "done"
        rows.append(about)
    if not os.environ.get("HF_HUB_OFFLINE"):
        # Planning downloads nothing; a run will.
        for about in rows:
            about["reason"] = about["reason"].replace(f" ({OFFLINE})", "")
            about["fix"] = about["fix"].replace(ONLINE, "`tokbench run` downloads it")
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tokbench.cli.tables import print_list

    lines = [
        {
            "tokenizer": about["tokenizer"],
            "suite": about["suite"],
            "files": about["samples"],
            "shards": f"{about['shards_done']}/{about['shards']}",
            "key": about["key"][:12],
            "state": about["state"],
        }
        for about in rows
    ]
    print_list(lines, ("key", "shards", "files"))
    for notice in [*left_out(request, asked), *notices(runs)]:
        typer.echo(notice, err=True)
    if without := metrics_without_weights(runs):
        typer.echo(
            f"weights absent of metrics: {', '.join(without)}; a run fetches them, or says where they go", err=True
        )
    for reason, fix in dict.fromkeys((about["reason"], about["fix"]) for about in rows if about["reason"]):
        typer.echo(reason, err=True)
        if fix:
            typer.echo(f"  fix: {fix}", err=True)
