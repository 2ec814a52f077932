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
from tokbench.registry import build_metric, distinct, expand, expand_each
from tokbench.spec import Card, MetricSpec, Suite
from tokbench.store import Store
from tokbench.suite import load_suites
from tokbench.summarise import merge, not_run
from tokbench.types import Fetching, Metric
from tokbench.weights import ALL_ROLES, resolve, weights_digest

Rerun = Literal["never", "failed", "all"]
Asked = Mapping[str, Sequence[Card]]
"""Pattern -> its cards."""


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

    def __post_init__(self) -> None:
        """Take one name for a sequence of one, a list for a tuple and text for a path, as notebooks write them."""
        for name in ("suites", "tokenizers", "datasets", "metrics"):
            value: Any = getattr(self, name)
            words = (value,) if isinstance(value, str | os.PathLike) else tuple(value)
            if wrong := [word for word in words if not isinstance(word, str | os.PathLike)]:
                also = "; an object is scored by tokbench.evaluate_tokenizer" if name == "tokenizers" else ""
                raise UsageError(f"{name}: {wrong[0]!r} is no name{also}")
            object.__setattr__(self, name, tuple(os.fspath(word) for word in words))
        object.__setattr__(self, "output", Path(self.output))


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


def plan_runs(request: Request, asked: Asked | None = None) -> list[Run]:
    """Open the suites' data, resolve cards and weights, and return every run of the request, absent ones included.

    `asked` is `expand_each(request.tokenizers)`, where the caller has it.

    Raises:
        UsageError: A name, option or combination that does not exist.
    """
    runs: list[Run] = []
    asked = expand_each(request.tokenizers) if asked is None else asked
    chosen = distinct(card for cards in asked.values() for card in cards)
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
        reasons = "; ".join(left_out(request, asked)) or f"no tokenizer fits the suites {', '.join(request.suites)}"
        raise UsageError(f"nothing to run: {reasons}")
    return runs


def left_out(request: Request, asked: Asked) -> list[str]:
    """Return which tokenizers and metrics of a request none of its suites can take, and why: they are not run."""
    suites = load_suites(request.suites)
    there = list(dict.fromkeys(suite.modality for suite in suites))
    are = f"the suites of this run are for {', '.join(there)}"
    found = []
    for pattern, cards in asked.items():
        mine = list(dict.fromkeys(card.spec.modality for card in cards))
        if not set(mine) & set(there):
            found.append(f"{pattern} is left out: it is for {', '.join(mine)}, {are}")
    for name in request.metrics:
        modalities = build_metric(name).spec.modalities
        if not set(modalities) & set(there):
            found.append(f"metric {name} is left out: it is for {', '.join(modalities)}, {are}")
    return found


def run(request: Request, reporter: Reporter | None = None) -> Report:
    """Do the main job: plan, run what is missing, merge, and return the results.

    Finished shards are never done again unless `rerun` is `all`; with `never`, a run whose last try failed is left alone.
    """
    from tokbench.device import check_dtype, choose_device, pin_numerics

    check_dtype(request.dtype)
    device = choose_device(request.device)
    pin_numerics()
    asked = expand_each(request.tokenizers)
    runs = plan_runs(request, asked)
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
    before = sum(item.absent is None and not store.missing(item) for item in runs)
    todo = [job for job in plan.jobs(runs, index, count) if _wanted(store, job, request.rerun)]
    finished = launch([work_of(job) for job in todo], settings, reporter or Silent(), request.workers)
    failed = [(item.work.run, item.outcome) for item in finished if item.outcome.status == "failed"]
    for item, outcome in failed:
        store.write_status(item, not_run(item, outcome.state, outcome.reason, outcome.fix))
    results, pending = collect(store, runs, provenance(device, settings.argv))
    broken = sum(_counts(outcome) for _, outcome in failed) + sum(r["status"] == "failed" for r in results)
    kept = keep_samples(store, runs, settings) if request.keep_samples else []
    again = [f"{before} of {len(runs)} run(s) were finished before and stand as they are; --rerun all does them again"]
    said = (*left_out(request, asked), *plan.notices(runs), *(again if before else ()), *kept)
    return Report(tuple(results), broken, pending, said)


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
    if request.datasets and len(suites) != 1:
        raise UsageError(
            f"--dataset takes the protocol of one suite, not of {', '.join(suite.name for suite in suites)}: "
            "name it with --suite, e.g. -s image-sample"
        )
    if request.metrics:
        suites = [_with_metrics(suite, request.metrics) for suite in suites]
        suites = [suite for suite in suites if suite.metrics]
    if not request.datasets or not suites:
        return suites
    suite = suites[0]
    # How many files a built-in sample has says nothing about other data; of a published set it tells a copy that lacks some.
    expected = None if suite.dataset.startswith("sample:") else suite.expected_samples
    return [
        replace(suite, name=f"{suite.name}+{_label(uri)}", dataset=uri, expected_samples=expected)
        for uri in request.datasets
    ]


def _with_metrics(suite: Suite, names: Sequence[str]) -> Suite:
    specs = {name: build_metric(name).spec for name in names}
    chosen = tuple(name for name, spec in specs.items() if suite.modality in spec.modalities)
    return replace(suite, metrics=chosen, board=())


def _label(uri: str) -> str:
    name = uri.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return Path(name).resolve().name if name in {".", ".."} else name or "data"


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
        gap = plan.absent(error)
        if any(not (file.hub or file.url or file.package) for file in card.weights):
            gap = replace(gap, fix=f"{gap.fix}; `tokbench show {card.name}` says where its authors publish it")
        return {}, "", gap
    return {role: str(path) for role, path in found.items()}, weights_digest(found), None


def _wanted(store: Store, job: plan.Job, rerun: Rerun) -> bool:
    if store.has_shard(job.run, job.shard):
        return False
    status = store.read_status(job.run)
    return not (rerun == "never" and status is not None and status.get("state") == "failed")


def _counts(outcome: Outcome) -> bool:
    """An absent extra is a state of the result; only a job that broke counts as failed."""
    return outcome.state == "failed"
