"""The library's front door: run the main job, or score a tokenizer object in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike, fspath
from typing import Any

from tokbench.data import DecodePool, manifest, open_source
from tokbench.device import check_dtype, choose_device, evaluating, move, pin_numerics
from tokbench.errors import UsageError
from tokbench.evaluate import BatchSize, applies, evaluate
from tokbench.plan import absent, check_columns, cut, fits, protocol_of
from tokbench.reconstruct import Engine
from tokbench.registry import as_tokenizer, build_metric
from tokbench.rows import Row
from tokbench.session import Report, Request, run
from tokbench.spec import Card
from tokbench.suite import load_suites
from tokbench.summarise import cells
from tokbench.types import Fetching, Tokenizer

__all__ = ["Report", "Request", "evaluate_tokenizer", "run"]


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    suite: str,
    *,
    dataset: str | PathLike[str] | None = None,
    metrics: str | Sequence[str] = (),
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: BatchSize = "auto",
    seed: int = 0,
    offline: bool = False,
) -> tuple[dict[str, dict[str, Any]], list[Row]]:
    """Score a tokenizer object on one suite, in this process, keeping nothing on disk.

    Args:
        tokenizer: Anything with `spec`, `encode` and `decode`; moved to `device` when it has `to`.
        suite: Name or path of a suite; it fixes the protocol.
        dataset: Other data under the suite's protocol: a folder or URI.
        metrics: Other metrics than the suite's.
        limit: First n files only.
        device: `auto`, `cpu` or `cuda:i`.
        dtype: The tokenizer's; metrics are float32 and float64 whatever it is.
        batch_size: Rows a batch, or `auto`.
        seed: Seeds stochastic tokenizers, with each sample's key.
        offline: Download no weights of metrics.

    Returns:
        Column -> cell (value, interval, n, status), and the per-sample rows in key order.

    Raises:
        UsageError: The suite has several parts, or the tokenizer does not fit it.
        ContractError: The object is no tokenizer.
    """
    parts = load_suites([suite])
    if len(parts) != 1:
        raise UsageError(f"{suite} has {len(parts)} parts; name one: {', '.join(part.name for part in parts)}")
    part = parts[0]
    as_tokenizer(tokenizer, repr(tokenizer)[:80])
    if not isinstance(dataset, str | PathLike | None):
        raise UsageError(f"dataset is a folder or an address, not a {type(dataset).__name__}")
    if batch_size != "auto" and batch_size < 1:
        raise UsageError(f"batch_size {batch_size}: give a positive number or 'auto'")
    check_dtype(dtype)
    pin_numerics()
    engine = Engine(choose_device(device), dtype, seed)
    move(tokenizer, engine.device, dtype)
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    built = {name: build_metric(name) for name in chosen or part.metrics}
    for metric in built.values():
        if isinstance(metric, Fetching):
            metric.fetch(offline=offline)
    source = open_source(part.dataset if dataset is None else fspath(dataset), part.modality)
    found = manifest(source)
    specs = [metric.spec for metric in built.values()]
    check_columns(specs)
    protocol = protocol_of(part, found, specs, limit=limit, dtype=dtype, seed=seed)
    card = Card(tokenizer.spec.name, "object", "object", tokenizer.spec)
    if (why := fits(card, protocol)) is not None:
        raise UsageError(why.reason)
    keys = [
        key
        for shard in cut(found, len(found.entries) or 1, limit)
        for key, _ in found.entries[shard.start : shard.stop]
    ]
    with evaluating(tokenizer), DecodePool("auto") as pool:
        result = evaluate(
            tokenizer,
            pool.stream(source, keys, protocol.prepare),
            {name: metric for name, metric in built.items() if applies(metric, tokenizer)},
            protocol,
            engine=engine,
            batch_size=batch_size,
        )
    gone = {name: asdict(absent(error)) for name, error in result.absent.items()}
    return cells(tokenizer.spec, built, result.rows, result.states.__getitem__, gone), list(result.rows)
