"""Options that several verbs share, each with its environment variable, and the `--config` file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from tokbench.errors import UsageError, nearest


def _config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's keys the defaults of the options of the same name; flags and variables win over it."""
    if path is None:
        return None
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    mine = {param.name: param for param in ctx.command.params if param.name}
    # One file serves `run` and `plan`: what only the other one knows is skipped.
    siblings = getattr(ctx.parent.command, "commands", {}) if ctx.parent else {}
    known = {param.name for name in ("run", "plan") if name in siblings for param in siblings[name].params} | set(mine)
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known or name in {"config", "help"}:
            near = nearest(key, [str(other).replace("_", "-") for other in mine])
            hint = f"did you mean {near[0]}?" if near else f"it has the options of `tokbench {ctx.info_name}`"
            raise UsageError(f"--config {path}: unknown key {key!r}; {hint}")
        if name in mine:
            defaults[name] = (
                [value] if getattr(mine[name], "multiple", False) and not isinstance(value, list) else value
            )
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with these options as keys; flags win.", callback=_config, is_eager=True),
]
Tokenizers = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizer", "-t", envvar="TOKBENCH_TOKENIZER",
        help="Name, glob ('taesd*', 'jpeg?*'), file.py:Class, cards.toml:name or @list.txt; repeat. Default: the suite's own.",
    ),
]  # fmt: skip
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite", "-s", envvar="TOKBENCH_SUITE", help="Suite name, glob or file.toml; repeat.  [default: quick]"
    ),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", "-d", envvar="TOKBENCH_DATASET",
        help="Use the suite's protocol on this data: a folder, wds:shards-{000..063}.tar, hf:org/name@revision:split; repeat.",
    ),
]  # fmt: skip
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        "-m",
        envvar="TOKBENCH_METRIC",
        help="Metric name or file.py:Class; repeat. Default: the suite's own.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", envvar="TOKBENCH_OUTPUT", help="The result store.")]
Limit = Annotated[
    int | None, typer.Option("--limit", envvar="TOKBENCH_LIMIT", min=1, help="First N files only; barred from boards.")
]
Device = Annotated[str, typer.Option("--device", envvar="TOKBENCH_DEVICE", help="auto, cpu or cuda:i.")]
Dtype = Annotated[
    str, typer.Option("--dtype", envvar="TOKBENCH_DTYPE", help="float32, bfloat16 or float16, for the tokenizer only.")
]
BatchSizeText = Annotated[
    str,
    typer.Option("--batch-size", envvar="TOKBENCH_BATCH_SIZE", help="Rows a batch, or auto: halves on out of memory."),
]
Seed = Annotated[
    int, typer.Option("--seed", envvar="TOKBENCH_SEED", help="Seeds stochastic tokenizers, with each sample's key.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", "-j", envvar="TOKBENCH_WORKERS", min=0, help="Local processes, a job each; 0: in this one."
    ),
]
DecodeWorkers = Annotated[
    str,
    typer.Option("--decode-workers", envvar="TOKBENCH_DECODE_WORKERS", help="Processes that decode ahead, or auto."),
]
ShardShare = Annotated[
    str | None,
    typer.Option(
        "--shard", envvar="TOKBENCH_SHARD", help="This machine's share i/n; also read from SLURM and torchrun."
    ),
]
ShardSize = Annotated[int, typer.Option("--shard-size", envvar="TOKBENCH_SHARD_SIZE", min=1, help="Files a shard.")]
RerunText = Annotated[
    str,
    typer.Option(
        "--rerun", envvar="TOKBENCH_RERUN", help="never: leave what failed; failed: retry it; all: do it all again."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="TOKBENCH_OFFLINE", help="Download nothing; say what is missing.")
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", envvar="TOKBENCH_FAIL_FAST", help="Stop at the first failed sample.")
]
KeepSamples = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-samples", envvar="TOKBENCH_KEEP_SAMPLES",
        help="Keep originals and reconstructions of N rows (the same for every tokenizer), of all, or of key=KEY; repeat.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


def count_or_auto(text: str, option: str) -> int | str:
    """Parse a positive count or `auto`. Raises UsageError."""
    if text == "auto":
        return text
    try:
        value = int(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: give a number or auto") from error
    if value < 0 or (option == "--batch-size" and value < 1):
        raise UsageError(f"{option} {text}: give a positive number or auto")
    return value
