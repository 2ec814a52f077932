"""The library's front door: run the main job, or score a tokenizer object in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tokbench.data import DecodePool, manifest, open_source
from tokbench.device import choose_device, pin_numerics
from tokbench.errors import UsageError
from tokbench.evaluate import BatchSize, applies, evaluate
from tokbench.plan import absent, cut, fits, protocol_of
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric
from tokbench.rows import Row
from tokbench.session import Report, Request, run
from tokbench.spec import Card
from tokbench.suite import load_suites
from tokbench.summarise import cells
from tokbench.types import Tokenizer

__all__ = ["Report", "Request", "evaluate_tokenizer", "run"]


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    suite: str,
    *,
    dataset: str | None = None,
    metrics: Sequence[str] = (),
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: BatchSize = "auto",
    seed: int = 0,
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

    Returns:
        Column -> cell (value, interval, n, status), and the per-sample rows in key order.

    Raises:
        UsageError: The suite has several parts, or the tokenizer does not fit it.
    """
    parts = load_suites([suite])
    if len(parts) != 1:
        raise UsageError(f"{suite} has {len(parts)} parts; name one: {', '.join(part.name for part in parts)}")
    part = parts[0]
    pin_numerics()
    engine = Engine(choose_device(device), dtype, seed)
    if hasattr(tokenizer, "to"):
        tokenizer.to(engine.device, dtype)
    built = {name: build_metric(name) for name in metrics or part.metrics}
    source = open_source(dataset or part.dataset, part.modality)
    found = manifest(source)
    specs = [metric.spec for metric in built.values()]
    protocol = protocol_of(part, found, specs, limit=limit, dtype=dtype, seed=seed)
    card = Card(tokenizer.spec.name, "object", "object", tokenizer.spec)
    if (why := fits(card, protocol)) is not None:
        raise UsageError(why.reason)
    keys = [
        key
        for shard in cut(found, len(found.entries) or 1, limit)
        for key, _ in found.entries[shard.start : shard.stop]
    ]
    with DecodePool("auto") as pool:
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
