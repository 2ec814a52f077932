"""The main job as a library call: suites x tokenizers, planned, launched, merged; what the CLI's `run` and `plan` stand on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokbench import plan
from tokbench.data import Manifest, Source, manifest, open_source
from tokbench.errors import NotAvailable, UsageError
from tokbench.evaluate import BatchSize
from tokbench.execute import Outcome, Settings, contract_of, work_of
from tokbench.gallery import NOTHING, Wanted
from tokbench.keeping import keep_samples
from tokbench.launch import Reporter, launch, machine_share
from tokbench.plan import Absent, Opened, Run
from tokbench.provenance import command_line, provenance
from tokbench.registry import build_metric, expand
from tokbench.spec import Card, MetricSpec, Suite
from tokbench.store import Store
from tokbench.suite import load_suites
from tokbench.summarise import merge, not_run
from tokbench.types import Fetching, Metric
from tokbench.weights import ALL_ROLES, resolve, weights_digest

Rerun = Literal["never", "failed", "all"]


@dataclass(frozen=True)
class Request:
    """Everything `tokbench run` can be asked for. Fields are the CLI's options of the same name."""

    suites: tuple[str, ...] = ("quick",)
    tokenizers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    output: Path = Path("results")
    limit: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_size: BatchSize = "auto"
    seed: int = 0
    workers: int = 0
    decode_workers: int | Literal["auto"] = "auto"
    shard: str | None = None
    shard_size: int = 1000
    rerun: Rerun = "failed"
    offline: bool = False
    fail_fast: bool = False
    keep_samples: Wanted = NOTHING


@dataclass(frozen=True)
class Report:
    """What a call of `run` leaves: every result of the request that exists now, how many failed, notices about the data."""

    results: tuple[dict[str, Any], ...]
    failed: int
    pending: int
    notices: tuple[str, ...] = ()


class Silent:
    """A reporter that says nothing."""

    def started(self, work: object) -> None:
        """Ignore."""

    def advanced(self, work: object, rows: int) -> None:
        """Ignore."""

    def finished(self, work: object, outcome: object) -> None:
        """Ignore."""


def plan_runs(request: Request) -> list[Run]:
    """Open the suites' data, resolve cards and weights, and return every run of the request, absent ones included.

    Raises:
        UsageError: A name, option or combination that does not exist.
    """
    runs: list[Run] = []
    chosen = expand(request.tokenizers)
    for suite in _suites(request):
        cards = _for_suite(suite, chosen)
        if not cards:
            continue
        specs = [_metric_spec(name, request.offline) for name in suite.metrics]
        plan.check_columns(specs)
        opened, missing_data = _open(suite, request, specs)
        for card in cards:
            weights, key, missing = find_weights(card, request.offline)
            runs.append(
                plan.make_run(
                    card,
                    opened,
                    shard_size=request.shard_size,
                    weights=weights,
                    weights_digest=key,
                    missing=missing_data or missing,
                )
            )
    if not runs:
        names = ", ".join(card.spec.name for card in chosen) or "no tokenizer"
        raise UsageError(f"nothing to run: {names} fits none of the suites {', '.join(request.suites)}")
    return runs


def run(request: Request, reporter: Reporter | None = None) -> Report:
    """Do the main job: plan, run what is missing, merge, and return the results.

    Finished shards are never done again unless `rerun` is `all`; with `never`, a run whose last try failed is left alone.
    """
    from tokbench.device import choose_device, pin_numerics

    device = choose_device(request.device)
    pin_numerics()
    runs = plan_runs(request)
    store = Store(request.output)
    store.create()
    for item in runs:
        if item.absent is not None:
            store.write_status(item, not_run(item, item.absent.state, item.absent.reason, item.absent.fix))
        elif request.rerun == "all":
            store.forget(item)
    settings = Settings(
        output=request.output,
        device=device,
        batch_size=request.batch_size,
        decode_workers=request.decode_workers,
        fail_fast=request.fail_fast,
        argv=tuple(command_line()),
        keep=request.keep_samples,
    )
    index, count = machine_share(request.shard, os.environ)
    todo = [job for job in plan.jobs(runs, index, count) if _wanted(store, job, request.rerun)]
    finished = launch([work_of(job) for job in todo], settings, reporter or Silent(), request.workers)
    failed = [(item.work.run, item.outcome) for item in finished if item.outcome.status == "failed"]
    for item, outcome in failed:
        store.write_status(item, not_run(item, outcome.state, outcome.reason, outcome.fix))
    results, pending = collect(store, runs, provenance(device, settings.argv))
    broken = sum(_counts(outcome) for _, outcome in failed) + sum(r["status"] == "failed" for r in results)
    kept = keep_samples(store, runs, settings) if request.keep_samples else []
    return Report(tuple(results), broken, pending, (*plan.notices(runs), *kept))


def collect(store: Store, runs: Sequence[Run], about: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Merge every run whose shards are all there; return results and states of absence, and how many runs lack shards."""
    built: dict[str, Metric] = {}
    results: list[dict[str, Any]] = []
    pending = 0
    for item in runs:
        if item.absent is None and (done := store.merged(item)) is not None:
            results.append(done)
            continue
        if item.absent is None and not store.missing(item):
            for name in item.suite.metrics:
                if name not in built:
                    built[name] = build_metric(name)
            metrics = {name: built[name] for name in item.suite.metrics}
            results.append(merge(store, item, metrics, {**about, "contract": dict(contract_of(store, item))}))
            continue
        status = store.read_status(item)
        if status is not None:
            results.append(status)
        else:
            pending += 1
    return results, pending


def _suites(request: Request) -> list[Suite]:
    suites = load_suites(request.suites)
    if request.metrics:
        suites = [_with_metrics(suite, request.metrics) for suite in suites]
        suites = [suite for suite in suites if suite.metrics]
    if not request.datasets:
        return suites
    if len(suites) != 1:
        raise UsageError("--dataset takes the protocol of one suite: name it with --suite, e.g. -s image-sample")
    return [replace(suites[0], name=f"{suites[0].name}+{_label(uri)}", dataset=uri) for uri in request.datasets]


def _with_metrics(suite: Suite, names: Sequence[str]) -> Suite:
    specs = {name: build_metric(name).spec for name in names}
    chosen = tuple(name for name, spec in specs.items() if suite.modality in spec.modalities)
    return replace(suite, metrics=chosen, board=())


def _label(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2].rpartition(":")[2] or "data"


def _for_suite(suite: Suite, chosen: Sequence[Card]) -> list[Card]:
    cards = chosen or expand(suite.tokenizers)
    return [card for card in cards if card.spec.modality == suite.modality]


def _open(suite: Suite, request: Request, specs: Sequence[Any]) -> tuple[Opened, Absent | None]:
    def opened(found: Manifest, source: Source | None) -> Opened:
        protocol = plan.protocol_of(suite, found, specs, limit=request.limit, dtype=request.dtype, seed=request.seed)
        return Opened(suite, source, found, protocol)

    try:
        source = open_source(suite.dataset, suite.modality)
        return opened(manifest(source), source), None
    except NotAvailable as error:
        return opened(Manifest(()), None), plan.absent(error)
    except UsageError as error:
        if request.datasets:
            raise
        # The suite names a place of its own that is not on this machine; an address the user gave would be a mistake.
        count = f", {suite.expected_samples:,} files" if suite.expected_samples else ""
        scheme = suite.dataset.partition(":")[0]
        fix = f"say where it is: `tokbench run -s {suite.name} -d {scheme}:/path/to/the/data`{count}"
        return opened(Manifest(()), None), Absent("data absent", str(error), fix)


def _metric_spec(name: str, offline: bool) -> MetricSpec:
    """Return a metric's spec, which names the digest of its weights: so they are fetched before, where that is allowed."""
    metric = build_metric(name)
    if isinstance(metric, Fetching):
        metric.fetch(offline=offline)
    return metric.spec


def find_weights(card: Card, offline: bool) -> tuple[dict[str, str], str, Absent | None]:
    """Return role -> path of a card's weights, their digest, and why they are absent (then the first two are empty)."""
    if not card.weights or card.status != "available":
        return {}, "", None
    override = card.options.get("weights")
    overrides = {} if override is None else {ALL_ROLES: Path(str(override))}
    try:
        found = resolve(card.weights, owner=card.name, offline=offline, overrides=overrides)
    except NotAvailable as error:
        return {}, "", plan.absent(error)
    return {role: str(path) for role, path in found.items()}, weights_digest(found), None


def _wanted(store: Store, job: plan.Job, rerun: Rerun) -> bool:
    if store.has_shard(job.run, job.shard):
        return False
    status = store.read_status(job.run)
    return not (rerun == "never" and status is not None and status.get("state") == "failed")


def _counts(outcome: Outcome) -> bool:
    """An absent extra is a state of the result; only a job that broke counts as failed."""
    return outcome.state == "failed"
