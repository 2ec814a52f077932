"""Suites x tokenizers -> runs and jobs with content keys. Pure: reads cards, manifests and metric specs; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokbench.data import Manifest, Source
from tokbench.errors import NotAvailable, UsageError
from tokbench.spec import Card, EvalProtocol, MetricSpec, Suite, digest


@dataclass(frozen=True)
class Shard:
    """A fixed slice of the dataset's keys, [start, stop), named by its content: never by how many machines there are."""

    start: int
    stop: int
    digest: str

    @property
    def name(self) -> str:
        """Return the directory name of the shard's results."""
        return f"{self.start:07d}-{self.stop:07d}-{self.digest[:12]}"


@dataclass(frozen=True)
class Absent:
    """Why a run cannot start: a state of the result, with the command that mends it."""

    state: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Run:
    """One row of a board to be: a tokenizer at an operating point, a suite under its full protocol, and the shards."""

    card: Card
    suite: Suite
    protocol: EvalProtocol
    manifest: Manifest = field(repr=False)
    shards: tuple[Shard, ...]
    source: Source | None = field(default=None, repr=False)
    weights: Mapping[str, str] = field(default_factory=dict)
    weights_digest: str = ""
    absent: Absent | None = None

    @property
    def key(self) -> str:
        """Return the content key: what is evaluated, on what, how, by which metric versions."""
        return digest({"card": self.card.identity(), "weights": self.weights_digest, "protocol": self.protocol})


@dataclass(frozen=True)
class Job:
    """One (tokenizer, shard): what a worker does in one go."""

    run: Run
    shard: Shard


def protocol_of(
    suite: Suite,
    manifest: Manifest,
    metrics: Sequence[MetricSpec],
    *,
    limit: int | None,
    dtype: str,
    seed: int,
) -> EvalProtocol:
    """Return the full protocol of a suite: its prepare step, the dataset's digest, and every metric's version and settings."""
    return EvalProtocol(
        modality=suite.modality,
        prepare=suite.prepare,
        rounding="none" if suite.modality == "audio" else suite.rounding,
        seed=seed,
        dataset=manifest.digest,
        limit=limit,
        dtype=dtype,
        metrics={spec.name: {"version": spec.version, **spec.protocol} for spec in metrics},
    )


def cut(manifest: Manifest, size: int, limit: int | None) -> tuple[Shard, ...]:
    """Cut the first `limit` entries into shards of `size` keys."""
    if size < 1:
        raise UsageError(f"--shard-size {size}: a shard holds at least one sample")
    total = len(manifest.entries) if limit is None else min(limit, len(manifest.entries))
    bounds = [(start, min(start + size, total)) for start in range(0, total, size)]
    return tuple(Shard(start, stop, digest(manifest.entries[start:stop])) for start, stop in bounds)


def check_columns(specs: Sequence[MetricSpec]) -> None:
    """Raise UsageError when two metrics write one column or go by one name (the same metric with two sets of options)."""
    owner: dict[str, str] = {}
    for index, spec in enumerate(specs):
        if any(other.name == spec.name for other in specs[:index]):
            raise UsageError(
                f"metric {spec.name!r} is asked for twice; options that do not change its name exclude each other"
            )
        for column in spec.columns:
            if owner.setdefault(column.name, spec.name) != spec.name:
                raise UsageError(
                    f"metrics {owner[column.name]} and {spec.name} both write {column.name!r}; name one of them"
                )


def fits(card: Card, protocol: EvalProtocol) -> Absent | None:
    """Return why a tokenizer cannot run under a protocol, or None."""
    spec = card.spec
    size = getattr(protocol.prepare, "size", None)
    if spec.modality != protocol.modality:
        return Absent("not applicable", f"{spec.name} is for {spec.modality}, the suite is {protocol.modality}")
    if spec.native_size is not None and spec.native_size != (size, size):
        height, width = spec.native_size
        return Absent("not applicable", f"{spec.name} works at {height}x{width} only, the protocol gives {size}")
    if card.status != "available":
        return Absent(card.status, card.notes or f"{card.name} is {card.status}")
    return None


def absent(error: NotAvailable) -> Absent:
    """Turn an error about something optional into the state a board shows."""
    home = str(Path.home())  # results may be published: they hold no folder of a user's machine
    return Absent(error.state, error.message.replace(home, "~"), error.fix.replace(home, "~"))


def jobs(runs: Sequence[Run], index: int = 0, count: int = 1) -> Iterator[Job]:
    """Yield the jobs of machine `index` of `count`: every count-th job, jobs of one tokenizer together."""
    if not 0 <= index < count:
        raise UsageError(f"--shard {index}/{count}: the index runs from 0 to {count - 1}")
    ready = [Job(run, shard) for run in runs if run.absent is None for shard in run.shards]
    yield from ready[index::count]


def notices(runs: Sequence[Run]) -> list[str]:
    """Return what a reader should know: files that were ignored, samples a package would add, terms of fetched weights."""
    found: dict[str, None] = {}
    for card in (run.card for run in runs if run.absent is None and any(f.hub or f.url for f in run.card.weights)):
        found[
            f"{card.name}: weights under {card.licence}" + (f" ({card.licence_note})" if card.licence_note else "")
        ] = None
    for run in runs:
        expected, there = run.suite.expected_samples, len(run.manifest.entries)
        if run.source is not None and expected not in {None, there}:
            found[
                f"{run.suite.name}: {there:,} files where the suite's set has {expected:,}: not comparable with its numbers"
            ] = None
    for source in (run.source for run in runs if run.source is not None):
        if source.ignored:
            found[f"{source.uri}: {source.ignored} file(s) of other types ignored"] = None
        if source.hint:
            found[f"{source.uri}: {source.hint}"] = None
    return list(found)


def metrics_without_weights(runs: Sequence[Run]) -> list[str]:
    """Return the metrics whose settings say that a weight file is not on this machine, as metrics spell it: `absent`."""

    def holds(value: object) -> bool:
        return any(map(holds, value.values())) if isinstance(value, Mapping) else value == "absent"

    return sorted({name for run in runs for name, settings in run.protocol.metrics.items() if holds(settings)})


def describe(run: Run) -> dict[str, Any]:
    """Return a run as `plan --json` prints it."""
    return {
        "tokenizer": run.card.spec.name,
        "suite": run.suite.name,
        "protocol": run.protocol.hash,
        "key": run.key,
        "samples": run.shards[-1].stop if run.shards else 0,
        "shards": len(run.shards),
        "state": run.absent.state if run.absent else "ready",
        "reason": run.absent.reason if run.absent else "",
        "fix": run.absent.fix if run.absent else "",
    }


@dataclass(frozen=True)
class Opened:
    """A suite with its data opened: the source to read from and the manifest that is hashed into the protocol."""

    suite: Suite
    source: Source | None
    manifest: Manifest
    protocol: EvalProtocol


def make_run(
    card: Card,
    opened: Opened,
    *,
    shard_size: int,
    weights: Mapping[str, str],
    weights_digest: str,
    missing: Absent | None,
) -> Run:
    """Put a tokenizer and an opened suite together."""
    return Run(
        card=card,
        suite=opened.suite,
        protocol=opened.protocol,
        manifest=opened.manifest,
        shards=cut(opened.manifest, shard_size, opened.protocol.limit),
        source=opened.source,
        weights=weights,
        weights_digest=weights_digest,
        absent=missing or fits(card, opened.protocol),
    )
