"""Regression verdicts: two results of one protocol, compared by token digest, by tolerance, by paired rows and by speed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokbench.entries import Entry, entries
from tokbench.errors import StoreError, UnknownName, UsageError
from tokbench.gate import DEFAULT_GATE, Gate
from tokbench.judge import ColumnTest, column_tests, decided, worst_rows
from tokbench.paired import holm
from tokbench.rows import Row, read_rows
from tokbench.verdicts import ColumnReport, Comparison, PairReport, SpeedReport


def find(text: str) -> list[Entry]:
    """Return the results `text` stands for, the latest of each (tokenizer, suite, protocol).

    `text` is a result directory, a store or any directory above results, or `STORE:NAME` with the full name of a tokenizer
    in that store, e.g. `results:jpeg?quality=50`.

    Raises:
        UsageError: No such directory or no such name.
        StoreError: A file that is no result of this schema.
    """
    place, name = _split(text)
    found = entries(place)
    if not found:
        raise UsageError(f"{place} holds no result; name a result directory, a store or STORE:NAME")
    if name is not None:
        known = sorted({entry.name for entry in found})
        found = [entry for entry in found if entry.name == name]
        if not found:
            near = str(UnknownName("tokenizer", name, known)).partition(" See ")[0]
            raise UsageError(f"{place}: {near} It holds {', '.join(known)}.")
    latest: dict[tuple[str, str, str], Entry] = {}
    for entry in sorted(found, key=lambda item: item.rank):
        latest[entry.name, entry.result["suite"], entry.result["protocol"]["hash"]] = entry
    return list(latest.values())


def _split(text: str) -> tuple[Path, str | None]:
    if Path(text).is_dir():
        return Path(text), None
    if Path(text).name == "result.json" and Path(text).is_file():
        return Path(text).parent, None
    for index in (i for i, char in enumerate(text) if char == ":"):
        if Path(text[:index]).is_dir():
            return Path(text[:index]), text[index + 1 :]
    raise UsageError(f"{text}: no such directory; name a result directory, a store or STORE:NAME")


def compare(
    base: Sequence[Entry],
    candidate: Sequence[Entry],
    gate: Gate = DEFAULT_GATE,
    *,
    columns: Sequence[str] = (),
    suites: Sequence[str] = (),
    worst: int = 5,
    resamples: int | None = None,
) -> Comparison:
    """Compare results pair by pair.

    Pairs share suite and name; where both sides hold one name only, they are paired whatever the names. Holm's correction
    runs over every judged column of every pair, so the chance of one false alarm in the whole call stays below 2.5 %.

    Args:
        base: From `find`.
        candidate: From `find`.
        gate: What decides.
        columns: Only these columns or metrics; empty: all.
        suites: Only these suites; empty: all.
        worst: Rows to list for each judged column.
        resamples: Of the bootstrap; None takes the default.

    Raises:
        UsageError: The two sides have no tokenizer and suite in common, or the gate names a column without direction.
    """
    pairs, notes = _pair_up(base, candidate, suites)
    drafts = [_draft(left, right, gate, columns, resamples) for left, right in pairs]
    tested = [(d, i) for d, draft in enumerate(drafts) for i, item in enumerate(draft.tests) if item.judged]
    adjusted = dict(zip(tested, holm([drafts[d].tests[i].p for d, i in tested]), strict=True))
    reports = []
    for d, draft in enumerate(drafts):
        tests = [decided(item, adjusted.get((d, i), item.p)) for i, item in enumerate(draft.tests)]
        reports.append(draft.finish(tuple(tests), worst))
    if gate.columns:
        seen = {column.column for pair in reports for column in pair.columns}
        absent = sorted(set(gate.columns) - seen)
        if absent and not any(pair.refused for pair in reports):
            raise UsageError(
                f"the gate names {', '.join(absent)}, and no pair has it; columns: {', '.join(sorted(seen))}"
            )
    return Comparison(tuple(reports), tuple(notes))


def _pair_up(
    base: Sequence[Entry], candidate: Sequence[Entry], suites: Sequence[str]
) -> tuple[list[tuple[Entry, Entry]], list[str]]:
    left = [entry for entry in base if not suites or entry.result["suite"] in suites]
    right = [entry for entry in candidate if not suites or entry.result["suite"] in suites]
    single = len({entry.name for entry in left}) == 1 and len({entry.name for entry in right}) == 1
    key: Callable[[Entry], tuple[str, str]] = lambda e: ("" if single else e.name, str(e.result["suite"]))  # noqa: E731
    if len(left) == 1 and len(right) == 1:
        return [(left[0], right[0])], []  # also across suites: refused with the fields that differ
    pairs: list[tuple[Entry, Entry]] = []
    notes: list[str] = []
    for wanted in sorted({key(entry) for entry in [*left, *right]}):
        mine = [entry for entry in left if key(entry) == wanted]
        theirs = [entry for entry in right if key(entry) == wanted]
        if not mine or not theirs:
            owner, entry = ("base", mine[0]) if mine else ("candidate", theirs[0])
            notes.append(f"{entry.name} on {wanted[1]}: only in the {owner}, not compared")
            continue
        by_hash = {entry.result["protocol"]["hash"]: entry for entry in theirs}
        common = [(entry, by_hash[h]) for entry in mine if (h := entry.result["protocol"]["hash"]) in by_hash]
        pairs += common or [(max(mine, key=lambda e: e.rank), max(theirs, key=lambda e: e.rank))]
    if not pairs:
        raise UsageError("base and candidate have no tokenizer on a suite in common; " + "; ".join(notes))
    return pairs, notes


@dataclass(frozen=True)
class _Draft:
    report: PairReport
    tests: tuple[ColumnTest, ...] = ()
    paired: tuple[tuple[Row, Row], ...] = ()

    def finish(self, columns: tuple[ColumnReport, ...], worst: int) -> PairReport:
        rows = tuple(row for column in columns if column.judged for row in worst_rows(self.paired, column, worst))
        return replace(self.report, columns=columns, worst=rows)


def differing(base: Mapping[str, Any], candidate: Mapping[str, Any], columns: Sequence[str] = ()) -> list[str]:
    """Return the fields that make two results incomparable, as `field: base != candidate`; empty: they compare."""
    fields = []
    for side, result in (("base", base), ("candidate", candidate)):
        if result["status"] == "not run":
            fields.append(f"{side}.status: not run ({result['state']}: {result['reason']})")
    if fields:
        return fields
    a, b = base["protocol"], candidate["protocol"]
    shared = [key for key in {**a, **b} if key not in {"hash", "metrics"}]
    for key in shared:
        fields += _unequal(f"protocol.{key}", a.get(key), b.get(key))
    if a["hash"] != b["hash"] and not fields:
        fields.append(f"protocol.hash: {a['hash'][:8]} != {b['hash'][:8]}")
    for name in sorted({*a["metrics"], *b["metrics"]}):
        owned = {column for r in (base, candidate) for column, cell in r["metrics"].items() if cell["metric"] == name}
        if columns and name not in columns and not owned & set(columns):
            continue
        if name not in b["metrics"]:
            fields.append(f"protocol.metrics.{name}: not in the candidate")
        elif name in a["metrics"]:
            fields += _unequal(f"protocol.metrics.{name}", a["metrics"][name], b["metrics"][name])
    return fields


def _unequal(path: str, a: Any, b: Any) -> list[str]:
    if a == b:
        return []
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [line for key in sorted({*a, *b}) for line in _unequal(f"{path}.{key}", a.get(key), b.get(key))]
    return [f"{path}: {_short(a)} != {_short(b)}"]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{20,}", r"\1…", text)


def _draft(left: Entry, right: Entry, gate: Gate, columns: Sequence[str], resamples: int | None) -> _Draft:
    base, candidate = left.result, right.result
    suite = str(base["suite"])
    refused = differing(base, candidate, columns)
    rows = [entry.place / "rows.parquet" for entry in (left, right)]
    refused += (
        [] if refused else [f"{path.name} is missing beside {path.parent.name}" for path in rows if not path.exists()]
    )
    if refused:
        places = (str(left.place), str(right.place))
        return _Draft(PairReport(left.name, right.name, suite, refused=tuple(refused), places=places))
    old, new = ({row.key: row for row in _rows(path)} for path in rows)
    failed = tuple(
        key for key, row in sorted(old.items()) if row.status == "ok" and (key not in new or new[key].status != "ok")
    )
    paired = tuple(
        (row, new[key])
        for key, row in sorted(old.items())
        if row.status == "ok" and key in new and new[key].status == "ok"
    )
    digest = _digest(base, candidate)
    problems = []
    if len(failed) > gate.max_failed:
        shown = ", ".join(failed[:3]) + (" …" if len(failed) > 3 else "")
        problems.append(f"{len(failed)} row(s) fail now and did not: {shown}")
    if gate.digest_equal and digest != "equal":
        problems.append(f"token digest: {digest}; the gate wants it equal")
    if _passed(base) and _passed(candidate) is False:
        problems.append("the candidate fails the contract, the base did not")
    notes = []
    tests = tuple(column_tests(left, right, paired, gate, columns, resamples))
    if gate.columns is None and any(not test.judged and test.report.higher_is_better is not None for test in tests):
        notes.append("numbers of the whole set without an interval decide only when a gate names them")
    speed, why = _speed(base, candidate, gate)
    if why:
        notes.append(f"speed not compared: {why}")
        if gate.max_ratio is not None:
            problems.append(f"the gate limits speed, which cannot be compared: {why}")
    report = PairReport(
        left.name,
        right.name,
        suite,
        digest=digest,
        rows=len(paired),
        failed=failed,
        speed=speed,
        problems=tuple(problems),
        changes=tuple(_changes(base, candidate)),
        notes=tuple(notes),
        places=(str(left.place), str(right.place)),
    )
    return _Draft(report, tests, paired)


def _rows(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def _digest(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> Literal["equal", "differs", "unknown"]:
    a, b = (r["provenance"].get("contract", {}).get("digest") for r in (base, candidate))
    return "unknown" if not a or not b else "equal" if a == b else "differs"


def _passed(result: Mapping[str, Any]) -> bool | None:
    passed: bool | None = result["provenance"].get("contract", {}).get("passed")
    return passed


def _changes(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    lines = []
    for part in ("identity", "weights"):
        lines += _unequal(f"tokenizer.{part}", base["tokenizer"].get(part), candidate["tokenizer"].get(part))
    for part in ("tokbench", "python", "platform", "device", "packages"):
        lines += _unequal(part, base["provenance"].get(part), candidate["provenance"].get(part))
    return lines


def _speed(base: Mapping[str, Any], candidate: Mapping[str, Any], gate: Gate) -> tuple[tuple[SpeedReport, ...], str]:
    """Return the phases' ratios, or why there are none. Speed is compared on one kind of device and batch only."""
    for label, of in (
        ("device", lambda r: r["provenance"].get("device", {}).get("name")),
        ("batch size", lambda r: r["timing"].get("batch_size")),
        ("threads", lambda r: sorted({s.get("threads", 0) for s in r["provenance"].get("shards", [])})),
    ):
        a, b = of(base), of(candidate)
        if a != b:
            return (), f"another {label} ({a} != {b})"
    reports = []
    phases: tuple[Literal["encode", "decode"], ...] = ("encode", "decode")
    for phase in phases:
        a, b = base["timing"][f"{phase}_seconds_per_sample"], candidate["timing"][f"{phase}_seconds_per_sample"]
        if not a or not b:
            return (), "nothing was timed"
        p = _distributions_differ(_per_shard(base, phase), _per_shard(candidate, phase))
        slow = gate.max_ratio is not None and b / a > gate.max_ratio and (p is None or p <= 0.05)
        reports.append(SpeedReport(phase, a, b, b / a, p, slow))
    return tuple(reports), ""


def _per_shard(result: Mapping[str, Any], phase: str) -> list[float]:
    return [t[f"{phase}_seconds"] / t["samples"] for t in result["timing"].get("shards", []) if t["samples"]]


def _distributions_differ(a: Sequence[float], b: Sequence[float]) -> float | None:
    if min(len(a), len(b)) < 4:
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a, b).pvalue)
