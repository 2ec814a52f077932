"""After the shards: puts the kept samples of every finished run in order and makes those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from tokbench.execute import Settings, Worker, work_of, worker
from tokbench.gallery import FOLDER, SIZE_CAP, Wanted, missing, settle
from tokbench.plan import Job, Run
from tokbench.store import Store

Status = Literal["ok", "failed"]


def keep_samples(store: Store, runs: Sequence[Run], settings: Settings) -> list[str]:
    """Make `settings.keep` true of every run that is merged, and return what a reader should know.

    Rows that were wanted and are not kept (the run was finished before they were asked for) are reconstructed again, without
    metrics. A run that another process is at work on is left to it.
    """
    from filelock import FileLock, Timeout

    notices: list[str] = []
    found: set[str] = set()
    done = [run for run in runs if run.absent is None and (store.run_dir(run) / "rows.parquet").exists()]
    with worker(replace(settings, expected_rows=0)) as own:
        for run in done:
            place = store.run_dir(run)
            rows, files = _rows(place / "rows.parquet")
            found |= rows.keys() & set(settings.keep.keys)
            try:
                with FileLock(place / "shards" / ".samples.lock", timeout=0):
                    notices += _keep(own, run, place / FOLDER, rows, files, settings.keep)
            except Timeout:
                notices.append(f"{_name(run)}: another process keeps its samples")
    if done:
        unknown = [key for key in settings.keep.keys if key not in found]
        notices += [f"--keep-samples key={key}: no run has a row of that key" for key in unknown]
    return notices


def _keep(
    own: Worker, run: Run, folder: Path, rows: dict[str, Status], files: dict[str, str], wanted: Wanted
) -> list[str]:
    if run.card.spec.encode_only:
        return [f"{_name(run)}: cannot decode, so no sample is kept"]
    left_out = settle(folder, rows, wanted)
    gone = missing(folder, rows, wanted)
    if gone:
        try:
            own.keep(work_of(Job(run, run.shards[0])), sorted({files[key] for key in gone}), gone)
        except Exception as error:  # a tokenizer may raise anything; the results stand
            return [f"{_name(run)}: {len(gone)} sample(s) could not be made again: {type(error).__name__}: {error}"]
        left_out = settle(folder, rows, wanted)
        gone = missing(folder, rows, wanted)
    failed = sum(rows[key] == "failed" for key in wanted.choose(rows))
    notices = []
    if gone:
        notices.append(f"{_name(run)}: {len(gone)} sample(s) failed when they were made again, and had not before")
    if failed:
        notices.append(f"{_name(run)}: {failed} of the samples to keep failed")
    if left_out:
        notices.append(f"{_name(run)}: {left_out} sample(s) not kept, a result keeps {SIZE_CAP / 1e6:g} MB")
    return notices


def _rows(path: Path) -> tuple[dict[str, Status], dict[str, str]]:
    """Return key -> status and key -> file of every row."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "status", "group"])
    keys = [str(key) for key in table["key"].to_pylist()]
    statuses = cast("list[Status]", table["status"].to_pylist())
    return dict(zip(keys, statuses, strict=True)), dict(zip(keys, table["group"].to_pylist(), strict=True))


def _name(run: Run) -> str:
    return f"{run.card.spec.name} on {run.suite.name}"
