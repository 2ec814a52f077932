"""Does one job in this process: loads the tokenizer once, checks its contract, evaluates the shard, writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from tokbench.contract import check, passed, token_digest
from tokbench.data import DecodePool, Manifest, Source
from tokbench.device import DTYPES, move
from tokbench.errors import NotAvailable, TokbenchError
from tokbench.evaluate import BatchSize, ShardResult, applies, evaluate
from tokbench.gallery import FOLDER, NOTHING, SIZE_CAP, Keeper, Wanted
from tokbench.plan import Job, Run, Shard, absent
from tokbench.provenance import provenance, utc_now
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric, build_tokenizer
from tokbench.rowpool import RowPool, row_workers
from tokbench.spec import digest
from tokbench.store import Store, write_json
from tokbench.types import Metric, Reading, Referencing, State, Tokenizer


@dataclass(frozen=True)
class Settings:
    """How jobs are done; nothing here changes a number.

    Attributes:
        output: The result store.
        decode_workers: Processes that decode ahead of the device, `auto` by dataset size.
        fail_fast: Stop at the first failed row.
        argv: The command line, for provenance.
        processes: That do jobs at the same time on this machine.
        expected_rows: Of all jobs together, about.
        keep: Rows whose original and reconstruction are written beside the result.
    """

    output: Path
    device: str = "cpu"
    batch_size: BatchSize = "auto"
    decode_workers: int | Literal["auto"] = "auto"
    fail_fast: bool = False
    argv: tuple[str, ...] = ()
    processes: int = 1
    expected_rows: int = 0
    keep: Wanted = NOTHING


@dataclass(frozen=True)
class Work:
    """A job made light enough to send to another process: the shard's keys in place of the whole manifest."""

    run: Run
    shard: Shard
    source: Source
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `busy` means another process holds it."""

    status: Literal["done", "busy", "failed"]
    state: str = ""
    reason: str = ""
    fix: str = ""


def work_of(job: Job) -> Work:
    """Cut a job down to what a worker needs."""
    source = job.run.source
    if source is None:
        raise ValueError(f"{job.run.suite.name} has no data; a run without data is absent and has no jobs")
    keys = tuple(key for key, _ in job.run.manifest.entries[job.shard.start : job.shard.stop])
    return Work(replace(job.run, manifest=Manifest(()), source=None), job.shard, source, keys)


@dataclass
class Worker:
    """Keeps what jobs of one process share: the last tokenizer, the metrics, and the decode pool."""

    settings: Settings
    pool: DecodePool
    rows: RowPool
    loaded: tuple[str, Tokenizer] | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)

    def do(self, work: Work, progress: Callable[[int], None] | None = None) -> Outcome:
        """Do one job, unless it is done already or another process is on it.

        An error ends the job, not the run: it is returned as an outcome. With `fail_fast` it is raised.
        """
        store = Store(self.settings.output)
        if store.has_shard(work.run, work.shard):
            return Outcome("done")
        with store.claim(work.run, work.shard) as mine:
            if not mine:
                return Outcome("busy")
            if store.has_shard(work.run, work.shard):
                return Outcome("done")
            try:
                self._evaluate(store, work, progress)
            except NotAvailable as error:
                return Outcome("failed", error.state, error.message, error.fix)
            except TokbenchError as error:
                if self.settings.fail_fast:
                    raise
                return Outcome("failed", "failed", str(error))
            except Exception as error:
                if self.settings.fail_fast:
                    raise
                return Outcome("failed", "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        return Outcome("done")

    def _evaluate(self, store: Store, work: Work, progress: Callable[[int], None] | None) -> None:
        run, settings = work.run, self.settings
        started = utc_now()
        engine = Engine(settings.device, run.protocol.dtype, run.protocol.seed)
        tokenizer = self._tokenizer(run, engine)
        key = contract_key(run)
        report = store.contract_path(run.card.spec.name, key)
        if not report.exists():
            checks = check(tokenizer, engine)
            body = {
                "key": key,
                "passed": passed(checks),
                "digest": token_digest(checks),
                "checks": [asdict(item) for item in checks],
            }
            write_json(report, body)
        built = {name: self._metric(name) for name in run.suite.metrics}
        metrics = {name: metric for name, metric in built.items() if applies(metric, tokenizer)}

        kept = reference_keys(run, work.shard, metrics, settings.device)
        readers = {metrics[name].spec.name: key for name, key in kept.items() if isinstance(metrics[name], Reading)}
        read = {name: store.read_readings(key) for name, key in readers.items()}
        keep = None
        if settings.keep:
            share = (work.shard.stop - work.shard.start) / run.shards[-1].stop
            keep = Keeper(store.run_dir(run) / FOLDER, settings.keep, int(SIZE_CAP * share))

        def evaluated(references: Mapping[str, State], told: Callable[[int], None] | None) -> ShardResult:
            return evaluate(
                tokenizer,
                self.pool.stream(work.source, work.keys, run.protocol.prepare),
                metrics,
                run.protocol,
                engine=engine,
                batch_size=settings.batch_size,
                fail_fast=settings.fail_fast,
                progress=told,
                references=references,
                readings=read,
                pool=self.rows,
                keep=keep,
            )

        known = {name: state for name, key in kept.items() if (state := store.read_reference(key)) is not None}
        result = evaluated(known, progress)
        if known and any(row.status != "ok" for row in result.rows):
            # What was kept holds the references of the rows that failed here, too.
            result = evaluated({}, None)
        for name, state in result.references.items():
            store.write_reference(kept[name], state)
        for name, found in result.readings.items():
            if name in readers and len(found) > len(read[name]):
                store.write_readings(readers[name], found)
        about = {
            "absent": {name: asdict(absent(error)) for name, error in result.absent.items()},
            "started": started,
            "finished": utc_now(),
            "threads": torch.get_num_threads(),
            "provenance": provenance(settings.device, settings.argv),
        }
        store.write_shard(run, work.shard, result, about)

    def keep(self, work: Work, files: Sequence[str], keys: Sequence[str]) -> None:
        """Reconstruct some files again and keep the rows `keys` of them; no metric runs. The caller settles the folder."""
        run, settings = work.run, self.settings
        engine = Engine(settings.device, run.protocol.dtype, run.protocol.seed)
        keeper = Keeper(Store(settings.output).run_dir(run) / FOLDER, Wanted(0, tuple(keys)))
        evaluate(
            self._tokenizer(run, engine),
            self.pool.stream(work.source, files, run.protocol.prepare),
            {},
            run.protocol,
            engine=engine,
            batch_size=settings.batch_size,
            keep=keeper,
        )

    def _tokenizer(self, run: Run, engine: Engine) -> Tokenizer:
        key = digest({"key": contract_key(run), "engine": engine})
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = None  # free the old one before the new one is loaded
            tokenizer = build_tokenizer(run.card, {role: Path(path) for role, path in run.weights.items()})
            if hasattr(tokenizer, "to"):
                move(tokenizer, engine.device, engine.dtype)
            elif DTYPES[engine.dtype] is not torch.float32:
                raise TokbenchError(f"{run.card.spec.name} has no `to`; it runs in float32 only")
            self.loaded = (key, tokenizer)
        return self.loaded[1]

    def _metric(self, name: str) -> Metric:
        if name not in self.metrics:
            self.metrics[name] = build_metric(name)
        return self.metrics[name]


def contract_key(run: Run) -> str:
    """Return the key of a tokenizer with its weights, under which its contract report is kept."""
    return digest({"card": run.card.identity(), "weights": run.weights_digest})


def reference_keys(run: Run, shard: Shard, metrics: Mapping[str, Metric], device: str) -> dict[str, str]:
    """Return under which key what a metric takes from the references is kept: all that it depends on, no tokenizer.

    The kind of device is part of it, because features differ between kinds in their last bits.
    """
    return {
        name: digest(
            {
                "protocol": run.protocol.hash,
                "shard": shard,
                "metric": {"name": metric.spec.name, "version": metric.spec.version, **metric.spec.protocol},
                "device": device.partition(":")[0],
            }
        )
        for name, metric in metrics.items()
        if isinstance(metric, Referencing | Reading)
    }


@contextmanager
def worker(settings: Settings) -> Iterator[Worker]:
    """Open a worker with its decode pool, and close the pool's processes at the end."""
    workers = row_workers(settings.expected_rows, settings.device, settings.processes)
    with DecodePool(settings.decode_workers) as pool, RowPool(workers) as rows:
        yield Worker(settings, pool, rows)


def contract_of(store: Store, run: Run) -> Mapping[str, object]:
    """Return the contract report of a run's tokenizer, or a note that there is none."""
    from tokbench.store import read_json

    path = store.contract_path(run.card.spec.name, contract_key(run))
    return read_json(path) if path.exists() else {"passed": None, "checks": []}
