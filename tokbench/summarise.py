"""Merges the shards of a run into the numbers a board shows: each with its n, interval, unit, version and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, cast

from tokbench.evaluate import Timing, is_corpus
from tokbench.plan import Run
from tokbench.ratios import ratio
from tokbench.rows import NOT_APPLICABLE, Row, column_names, statistic
from tokbench.spec import Column, MetricSpec, TokenizerSpec, jsonable
from tokbench.store import SCHEMA_VERSION, Store
from tokbench.types import Bounding, Corpus, Metric, PerSample, RowWise, State, Summarising, merge_states

_NONE: Mapping[str, Mapping[str, str]] = MappingProxyType({})


def merge(store: Store, run: Run, metrics: Mapping[str, Metric], about: Mapping[str, Any]) -> dict[str, Any]:
    """Merge all shards of a finished run, write `rows.parquet` and `result.json`, and return the result.

    Args:
        store: Holds every shard of the run.
        run: The plan of the run.
        metrics: All metrics of the suite by name; those that do not apply get a cell that says so.
        about: Provenance.
    """
    rows: list[Row] = []
    timings: list[Timing] = []
    shards: list[dict[str, Any]] = []
    absent: dict[str, Mapping[str, str]] = {}
    for shard in run.shards:
        part, record = store.read_shard(run, shard)
        rows += part
        absent |= record.pop("absent", {})
        timings.append(Timing(**record.pop("timing")))
        shards.append(record)
    rows.sort(key=lambda row: row.key)

    def state_of(name: str) -> State:
        return _merged(store, run, name, metrics[name])

    good = [row for row in rows if row.status == "ok"]
    result = {
        "schema_version": SCHEMA_VERSION,
        "status": "complete" if good else "failed",
        "reason": "" if good else f"every sample failed; the first: {rows[0].reason}" if rows else "no samples",
        **head(run),
        "samples": {
            "total": len(run.manifest.entries),
            "files": run.shards[-1].stop if run.shards else 0,
            "rows": len(rows),
            "ok": len(good),
            "failed": len(rows) - len(good),
            "failures": [{"key": row.key, "reason": row.reason} for row in rows if row.status == "failed"][:50],
        },
        "metrics": cells(run.card.spec, metrics, rows, state_of, absent),
        "timing": timing_summary(timings),
        "provenance": {**about, "shards": shards},
    }
    store.write_result(run, rows, result)
    return result


def _merged(store: Store, run: Run, name: str, metric: Metric) -> State:
    """Return the state of one metric over all shards: read when it is computed, so that no two are held at once."""
    state: State = {}
    for shard in run.shards:
        state = merge_states(state, store.read_state(run, shard, name))
        if isinstance(metric, Bounding):
            state = metric.bound(state)
    return state


def head(run: Run) -> dict[str, Any]:
    """Return what identifies a run, whatever became of it."""
    card = run.card
    return {
        "key": run.key,
        "suite": run.suite.name,
        "modality": run.suite.modality,
        "board": list(run.suite.board),
        "dataset": {"uri": public_uri(run.suite.dataset), "manifest": run.manifest.digest},
        "protocol": {"hash": run.protocol.hash, **jsonable(run.protocol)},
        "tokenizer": {
            "name": card.spec.name,
            "family": card.family,
            "kind": card.spec.kind,
            "summary": card.summary,
            "licence": card.licence,
            "source": card.source,
            "identity": jsonable(card.identity()),
            "weights": run.weights_digest,
        },
    }


def not_run(run: Run, state: str, reason: str, fix: str = "") -> dict[str, Any]:
    """Return the record of a run that is not there: its state ("weights absent"), the reason, and what mends it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "not run",
        "state": state,
        "reason": reason,
        "fix": fix,
        **head(run),
    }


def cells(
    spec: TokenizerSpec,
    metrics: Mapping[str, Metric],
    rows: Sequence[Row],
    state_of: Callable[[str], State],
    absent: Mapping[str, Mapping[str, str]] = _NONE,
) -> dict[str, dict[str, Any]]:
    """Return column -> cell for every metric of the suite; `absent` says which could not run, and why.

    `state_of` gives the state of a corpus metric by its name.
    """
    good = [row for row in rows if row.status == "ok"]
    failed = len(rows) - len(good)
    out: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        about = metric.spec
        if reason := about.mismatch(spec):
            bodies = {column.name: _empty("not applicable", reason) for column in about.columns}
        elif name in absent:
            why = absent[name]
            reason = "; ".join(text for text in (why["reason"], why["fix"]) if text)
            bodies = {column.name: _empty(why["state"], reason) for column in about.columns}
        elif is_corpus(metric):
            numbers = cast("Corpus", metric).compute(state_of(name))
            bodies = {name: _corpus_cell(metric, name, value, good, failed) for name, value in numbers.items()}
        else:
            bodies = _row_cells(cast("PerSample | RowWise", metric), good, failed)
        for column, body in bodies.items():
            out[column] = {**_described(about, column), **body}
    return dict(sorted(out.items()))


def _described(spec: MetricSpec, column: str) -> dict[str, Any]:
    """Return what the metric says of a column; `name/part` columns are described by `name` and shown by no board."""
    known = {entry.name: entry for entry in spec.columns}
    entry = known.get(column) or known.get(column.partition("/")[0]) or Column(column)
    return {
        "metric": spec.name,
        "version": spec.version,
        "unit": entry.unit,
        "higher_is_better": entry.higher_is_better,
        "decimals": entry.decimals,
        "atol": entry.atol,
        "level": entry.level and "/" not in column,
    }


def _row_cells(metric: PerSample | RowWise, rows: Sequence[Row], failed: int) -> dict[str, dict[str, Any]]:
    known = {entry.name: entry for entry in metric.spec.columns}
    declared = [entry.name for entry in metric.spec.columns if entry.where == "row"]
    mine = [column for column in column_names(rows) if column.partition("/")[0] in known] if rows else declared
    bodies = {column: _row_cell(column, rows, failed) for column in mine}
    table = {column: [row.values.get(column) for row in rows] for column in {*mine, *declared}}
    groups = [row.group for row in rows]
    if hasattr(metric, "summarise"):
        derived = cast("Summarising", metric).summarise(table, groups)
        bodies |= {name: _corpus_cell(metric, name, value, rows, failed) for name, value in derived.items()}
    for column in metric.spec.columns:
        if column.ratio or column.mean_of:
            bodies[column.name] = _ratio_cell(metric.spec, column, table, rows, failed)
    return bodies


def _ratio_cell(
    spec: MetricSpec, column: Column, table: Mapping[str, Sequence[float | None]], rows: Sequence[Row], failed: int
) -> dict[str, Any]:
    parts = spec.ratio_parts(column)
    found = ratio(table, [row.group for row in rows], parts)
    below = {name for _, name in parts}
    missing = [row for row in rows if all(row.values.get(name) is None for name in below)]
    reasons = [row.undefined[name] for row in missing for name in below if name in row.undefined]
    nothing = " and ".join(sorted(name for name in below if not any(table[name])))
    return {
        **_empty("", ""),
        "value": found.value,
        "ci95": None if found.low is None else [found.low, found.high],
        "n": round(found.n),
        "n_undefined": len(missing),
        "n_failed": failed,
        **_state(found.value, reasons or [f"no {nothing} in this set"]),
        "ratio": [list(part) for part in parts],
    }


def _row_cell(column: str, rows: Sequence[Row], failed: int) -> dict[str, Any]:
    found = statistic([row.values.get(column) for row in rows])
    reasons = [row.undefined[column] for row in rows if column in row.undefined] or ["no sample succeeded"]
    return {
        "value": found.value,
        "stderr": found.stderr,
        "ci95": None if found.low is None else [found.low, found.high],
        "n": found.n,
        "n_undefined": len(rows) - found.n,
        "n_failed": failed,
        **_state(found.value, reasons),
        "where": "row",
    }


def _corpus_cell(metric: Metric, column: str, value: float | None, rows: Sequence[Row], failed: int) -> dict[str, Any]:
    why: Mapping[str, str] = getattr(metric, "undefined", {})
    reasons = [row.undefined[column] for row in rows if column in row.undefined]
    state = _state(value, reasons or [why.get(column, "undefined on this set")])
    return {**_empty("", ""), **state, "value": value, "n": len(rows), "n_failed": failed}


def _state(value: float | None, reasons: Sequence[str]) -> dict[str, str]:
    """Return status and reason: `not applicable` where every row without a value says so, else the first reason."""
    if value is not None:
        return {"status": "ok", "reason": ""}
    if all(reason.startswith(NOT_APPLICABLE) for reason in reasons):
        return {"status": "not applicable", "reason": reasons[0].removeprefix(NOT_APPLICABLE)}
    return {"status": "undefined", "reason": reasons[0]}


def _empty(status: str, reason: str) -> dict[str, Any]:
    return {
        "value": None, "stderr": None, "ci95": None, "n": 0, "n_undefined": 0, "n_failed": 0,
        "status": status, "reason": reason, "where": "corpus",
    }  # fmt: skip


def timing_summary(timings: Sequence[Timing]) -> dict[str, Any]:
    """Add the shards' timings up; per-sample figures are of warm batches, seconds.

    A real-time factor is seconds of compute for a second of sound: below 1 is faster than it plays.
    """
    samples = sum(t.samples for t in timings)
    encode = sum(t.encode_seconds for t in timings)
    decode = sum(t.decode_seconds for t in timings)
    signal = sum(t.signal_seconds for t in timings)
    latency = [t for t in timings if t.single_encode_seconds is not None]
    first = latency[0] if latency else Timing()
    return {
        "samples": samples,
        "batch_size": max((t.batch_size for t in timings), default=0),
        "encode_seconds_per_sample": encode / samples if samples else None,
        "decode_seconds_per_sample": decode / samples if samples else None,
        "encode_real_time_factor": encode / signal if signal else None,
        "decode_real_time_factor": decode / signal if signal else None,
        "latency_encode_seconds": first.single_encode_seconds,
        "latency_decode_seconds": first.single_decode_seconds,
        "peak_memory_bytes": max((t.peak_memory_bytes for t in timings), default=0),
        "length_error": max((t.length_error for t in timings), key=abs, default=0),
        "shards": [asdict(t) for t in timings],
    }


def public_uri(uri: str) -> str:
    """Keep the scheme and the last part of a local path, so that results hold no folder of a user's machine."""
    scheme, sign, rest = uri.partition(":")
    if sign and scheme in {"sample", "hf"}:
        return uri
    if not sign or len(scheme) == 1:  # a bare path, or one that begins with a drive
        scheme, rest = "folder", uri
    path, mark, query = rest.partition("?")
    options = "&".join(_last_part(option) for option in query.split("&"))
    return f"{scheme}:{_last_part(path)}{mark}{options}"


def _last_part(text: str) -> str:
    name, sign, path = text.rpartition("=")
    return name + sign + path.replace("\\", "/").rstrip("/").rpartition("/")[2]
