"""Regression verdicts: two results of one protocol, compared by token digest, by tolerance, by paired rows and by speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokbench.entries import Entry, entries
from tokbench.errors import StoreError, UnknownName, UsageError
from tokbench.paired import RESAMPLES, Difference, holm, mean_difference, ratio_difference
from tokbench.rows import Row, read_rows
from tokbench.subsets import SubsetDifference, subset_differences

Verdict = Literal["same", "better", "unclear", "worse", "changed", "lost"]

LEVEL = 0.025
"""One-sided level of the gate: the two-sided 95 % interval lies wholly beyond the tolerance."""

DEFAULT_ATOL = 1e-6


# ------------------------------------------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Limit:
    """What a gate allows one column.

    Attributes:
        max_drop: Loss of the mean that is still fine, in the column's unit, in its worse direction.
        max_lost: Rows that may have had a value and have none now.
    """

    max_drop: float
    max_lost: int = 0


@dataclass(frozen=True)
class Gate:
    """What decides the exit code. Without columns, every column with a direction is held to its own tolerance.

    Attributes:
        columns: Column -> limit; others are shown and decide nothing.
        max_failed: Rows that may have succeeded before and fail now.
        max_ratio: Candidate's seconds over base's, for encode and for decode; None: speed decides nothing.
        digest_equal: The tokens of the probe must be the same.
    """

    columns: Mapping[str, Limit] | None = None
    max_failed: int = 0
    max_ratio: float | None = None
    digest_equal: bool = False


def parse_gate(table: Mapping[str, Any]) -> Gate:
    """Build a gate from the table of a gate file.

    Raises:
        UsageError: An unknown key, or a value of the wrong type; the message names it.
    """
    _known(table, {"metric", "rows", "speed", "digest"}, "")
    limits = {}
    for name, entry in _table(table, "metric").items():
        if not isinstance(entry, Mapping):
            raise UsageError(f"gate: metric.{name} is a table, e.g. {{ max_drop = 0.1 }}")
        _known(entry, {"max_drop", "max_lost"}, f"metric.{name}.")
        if "max_drop" not in entry:
            raise UsageError(f"gate: metric.{name} needs max_drop")
        drop = _number(entry, "max_drop", f"metric.{name}.")
        limits[name] = Limit(drop, int(_number(entry, "max_lost", f"metric.{name}.", 0)))
    rows, speed, token = (_table(table, key) for key in ("rows", "speed", "digest"))
    _known(rows, {"max_failed"}, "rows.")
    _known(speed, {"max_ratio"}, "speed.")
    _known(token, {"equal"}, "digest.")
    if not isinstance(token.get("equal", False), bool):
        raise UsageError("gate: digest.equal is true or false")
    return Gate(
        columns=limits or None,
        max_failed=int(_number(rows, "max_failed", "rows.", 0)),
        max_ratio=_number(speed, "max_ratio", "speed.") if speed else None,
        digest_equal=token.get("equal", False),
    )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise UsageError(f"gate: {key} is a table: [{key}]")
    return value


def _known(table: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"gate: unknown key {prefix}{key}; known: {', '.join(sorted(known))}")


def _number(table: Mapping[str, Any], key: str, prefix: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0 or math.isinf(value):
        raise UsageError(f"gate: {prefix}{key} is a number that is not negative, not {value!r}")
    return float(value)


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


# ----------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class ColumnReport:
    """What became of one column. Differences are candidate minus base.

    Attributes:
        verdict: `worse` and `lost` fail the gate where `judged`; `unclear`: the interval reaches over the tolerance, so
            neither a loss nor equality is shown; `changed`: differs, and nothing says which way is better or how sure.
        tolerance: What was allowed, in the column's unit.
        ci95: Of the difference; of rFID and its like, of the difference on subsets that `note` describes.
        p: Holm-adjusted p-value of "no worse than the tolerance"; None for columns without an interval.
        lost: Rows with a value in the base and none in the candidate.
        ratio: The (above, below) row columns of a ratio of sums, or of a mean of such ratios.
    """

    column: str
    unit: str
    higher_is_better: bool | None
    decimals: int
    base: float | None
    candidate: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    n: int
    lost: int
    tolerance: float
    p: float | None
    verdict: Verdict
    judged: bool
    note: str = ""
    ratio: tuple[tuple[str, str], ...] = ()

    @property
    def fails(self) -> bool:
        """Tell whether this column alone fails the gate."""
        return self.judged and self.verdict in {"worse", "lost"}


@dataclass(frozen=True)
class SpeedReport:
    """Seconds per sample of one phase. `p` is of the Mann-Whitney test on shards, None below four shards a side."""

    phase: Literal["encode", "decode"]
    base: float
    candidate: float
    ratio: float
    p: float | None
    fails: bool


@dataclass(frozen=True)
class WorstRow:
    """One sample that lost most in a column."""

    column: str
    key: str
    base: float
    candidate: float


@dataclass(frozen=True)
class PairReport:
    """One tokenizer on one suite, base against candidate.

    Attributes:
        refused: Fields that differ and make numbers incomparable; then nothing else is filled in.
        digest: Whether the encoder emits the same tokens on the probe: `equal`, `differs`, or `unknown`.
        failed: Keys that succeeded in the base and fail in the candidate.
        problems: Why the pair fails beside its columns.
        changes: What else is not the same: weights, options, versions, device.
        worst: The samples that lost most in each judged column.
        places: The two directories that were compared.
    """

    base: str
    candidate: str
    suite: str
    refused: tuple[str, ...] = ()
    digest: Literal["equal", "differs", "unknown"] = "unknown"
    rows: int = 0
    failed: tuple[str, ...] = ()
    columns: tuple[ColumnReport, ...] = ()
    speed: tuple[SpeedReport, ...] = ()
    worst: tuple[WorstRow, ...] = ()
    problems: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    places: tuple[str, str] = ("", "")

    @property
    def regressed(self) -> tuple[WorstRow, ...]:
        """Return those of `worst` whose column fails the gate."""
        failing = {column.column for column in self.columns if column.fails}
        return tuple(row for row in self.worst if row.column in failing)

    @property
    def verdict(self) -> Literal["fine", "worse", "not comparable"]:
        """Return what became of the pair."""
        if self.refused:
            return "not comparable"
        bad = self.problems or any(column.fails for column in self.columns) or any(item.fails for item in self.speed)
        return "worse" if bad else "fine"


@dataclass(frozen=True)
class Comparison:
    """All pairs of a comparison. `notes` say what had no partner."""

    pairs: tuple[PairReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 0 (fine), 1 (something is worse) or 2 (something cannot be compared)."""
        verdicts = {pair.verdict for pair in self.pairs}
        return 2 if "not comparable" in verdicts or not self.pairs else 1 if "worse" in verdicts else 0


# ------------------------------------------------------------------------------------------------- comparisons


def compare(
    base: Sequence[Entry],
    candidate: Sequence[Entry],
    gate: Gate = Gate(),
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
        tests = [_decided(item, adjusted.get((d, i), item.p)) for i, item in enumerate(draft.tests)]
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
class _Test:
    """A column before the correction: a finished report, or a difference that awaits its adjusted p-value."""

    report: ColumnReport
    judged: bool = False
    p: float = 1.0
    difference: Difference | None = None
    index: int = 0
    max_lost: int = 0
    subsets: SubsetDifference | None = None


@dataclass(frozen=True)
class _Draft:
    report: PairReport
    tests: tuple[_Test, ...] = ()
    paired: tuple[tuple[Row, Row], ...] = ()

    def finish(self, columns: tuple[ColumnReport, ...], worst: int) -> PairReport:
        rows = tuple(row for column in columns if column.judged for row in worst_rows(self.paired, column, worst))
        return replace(self.report, columns=columns, worst=rows)


def worst_rows(paired: Sequence[tuple[Row, Row]], column: ColumnReport, count: int) -> list[WorstRow]:
    """Return the rows that lost most in a column, worst first."""
    sign = -1.0 if column.higher_is_better else 1.0
    found = []
    for old, new in paired:
        before, after = (_row_value(row, column) for row in (old, new))
        if before is not None and after is not None and sign * (after - before) > 0:
            found.append(WorstRow(column.column, old.key, before, after))
    return sorted(found, key=lambda row: (-sign * (row.candidate - row.base), row.key))[:count]


def _row_value(row: Row, column: ColumnReport) -> float | None:
    if not column.ratio:
        return row.values.get(column.column)
    shares = [
        above / below
        for above, below in ((row.values.get(a), row.values.get(b)) for a, b in column.ratio)
        if above is not None and below
    ]
    return math.fsum(shares) / len(shares) if shares else None


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
    return f"{text[:12]}…" if len(text) == 64 else text


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
    tests = tuple(_tests(left, right, paired, gate, columns, resamples))
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


def _tests(
    left: Entry,
    right: Entry,
    paired: Sequence[tuple[Row, Row]],
    gate: Gate,
    only: Sequence[str],
    resamples: int | None,
) -> list[_Test]:
    cells = {
        column: (cell, right.result["metrics"].get(column))
        for column, cell in left.result["metrics"].items()
        if not only or column in only or cell["metric"] in only
    }
    wanted = [column for column in cells if _shown(column, cells[column][0], gate, only)]
    rowwise = [column for column in wanted if cells[column][0]["where"] == "row"]
    table = np.array(
        [[_gap(old.values.get(column), new.values.get(column)) for column in rowwise] for old, new in paired],
        np.float64,
    ).reshape(len(paired), len(rowwise))
    bounds = np.array([_tolerance(column, cells[column][0], gate) for column in rowwise])
    groups = [old.group for old, _ in paired]
    difference = None
    if rowwise and paired:
        difference = mean_difference(
            table, groups=groups, above=bounds, below=-bounds, resamples=resamples or RESAMPLES
        )
    directed = [
        column for column in wanted if column not in rowwise and cells[column][0]["higher_is_better"] is not None
    ]
    subsets = subset_differences(left.place, right.place, [c for c in directed if not cells[c][0].get("ratio")])
    tests = []
    for column in wanted:
        cell, other = cells[column]
        blank = _blank(column, cell, other, _lost(paired, column, cell), _tolerance(column, cell, gate))
        found, index = difference, rowwise.index(column) if column in rowwise else 0
        if column not in rowwise:
            found = _ratio(blank, paired, groups, resamples) if blank.ratio and paired else None
        on_subsets = subsets.get(column)
        has_interval = found is not None or isinstance(on_subsets, SubsetDifference)
        judged = (
            column in gate.columns if gate.columns is not None else has_interval and blank.higher_is_better is not None
        )
        blank = replace(blank, judged=judged)
        if found is not None:
            p = found.p_below if cell["higher_is_better"] else found.p_above
            limit = (gate.columns or {}).get(column)
            tests.append(_Test(blank, judged, float(p[index]), found, index, 0 if limit is None else limit.max_lost))
        elif isinstance(on_subsets, SubsetDifference) and blank.candidate is not None:
            sign = -1 if cell["higher_is_better"] else 1
            p_value = on_subsets.p_beyond(sign * blank.tolerance, sign)
            tests.append(_Test(blank, judged, p_value, subsets=on_subsets))
        else:
            tests.append(_Test(_corpus(blank, on_subsets if isinstance(on_subsets, str) else "no rows")))
    return tests


def _lost(paired: Sequence[tuple[Row, Row]], column: str, cell: Mapping[str, Any]) -> int:
    names = {name for part in cell.get("ratio") or () for name in part} or {column}
    return sum(
        any(old.values.get(name) is not None and new.values.get(name) is None for name in names) for old, new in paired
    )


def _ratio(
    blank: ColumnReport, paired: Sequence[tuple[Row, Row]], groups: Sequence[str], resamples: int | None
) -> Difference | None:
    """Bootstrap the difference of a column that is a ratio of two row columns' sums, or a mean of such ratios."""

    def number(row: Row, name: str) -> float:
        value = row.values.get(name)
        return math.nan if value is None else value

    tables = [
        np.array([[number(row, name) for row in pair for name in part] for pair in paired], np.float64)
        for part in blank.ratio
    ]
    found = ratio_difference(
        tables, groups=groups, above=blank.tolerance, below=-blank.tolerance, resamples=resamples or RESAMPLES
    )
    return None if math.isnan(float(found.mean[0])) else found


def _shown(column: str, cell: Mapping[str, Any], gate: Gate, only: Sequence[str]) -> bool:
    named = column in (gate.columns or {}) or column in only
    if named and column in (gate.columns or {}) and cell["higher_is_better"] is None:
        raise UsageError(f"the gate names {column}, and neither direction of it is better; gate another column")
    return named or (bool(cell["level"]) and (cell["value"] is not None))


def _tolerance(column: str, cell: Mapping[str, Any], gate: Gate) -> float:
    limit = (gate.columns or {}).get(column)
    return limit.max_drop if limit is not None else float(cell.get("atol", DEFAULT_ATOL))


def _gap(old: float | None, new: float | None) -> float:
    return math.nan if old is None or new is None else new - old


def _blank(
    column: str, cell: Mapping[str, Any], other: Mapping[str, Any] | None, lost: int, tolerance: float
) -> ColumnReport:
    before, after = cell["value"], None if other is None else other["value"]
    return ColumnReport(
        column=column,
        unit=cell["unit"],
        higher_is_better=cell["higher_is_better"],
        decimals=int(cell.get("decimals", 4)),
        base=before,
        candidate=after,
        difference=None if before is None or after is None else after - before,
        ci95=None,
        n=0,
        lost=lost,
        tolerance=tolerance,
        p=None,
        verdict="same",
        judged=False,
        ratio=tuple((str(above), str(below)) for above, below in cell.get("ratio") or ()),
    )


def _corpus(blank: ColumnReport, why: str) -> ColumnReport:
    """Judge a number of the whole set: by tolerance alone; `why` there is no interval."""
    if blank.base is not None and blank.candidate is None:
        return replace(blank, verdict="lost", note="the candidate has no value")
    if blank.difference is None:
        return replace(blank, verdict="same" if blank.base is blank.candidate else "changed")
    return replace(blank, verdict=_by_value(blank, blank.difference, blank.difference), note=why)


def _by_value(column: ColumnReport, low: float, high: float) -> Verdict:
    """Place an interval of the difference against the tolerance."""
    if -column.tolerance <= low and high <= column.tolerance:
        return "same"
    if column.higher_is_better is None:
        return "changed"
    sign = 1.0 if column.higher_is_better else -1.0
    best, least = max(sign * low, sign * high), min(sign * low, sign * high)
    return "better" if least > column.tolerance else "worse" if best < -column.tolerance else "unclear"


def _decided(test: _Test, p: float) -> ColumnReport:
    if test.subsets is not None:
        return _decide_on_subsets(test, test.subsets, p)
    return test.report if test.difference is None else _decide(test, p)


def _decide_on_subsets(test: _Test, found: SubsetDifference, p: float) -> ColumnReport:
    low, high = found.ci95
    verdict = _by_value(test.report, low, high)
    if verdict == "worse" and test.judged and p > LEVEL:
        verdict = "unclear"
    if p <= LEVEL:
        verdict = "worse"
    mean = f"{found.mean:+.{test.report.decimals}f}"
    which = f"{found.draws} subsets of {found.size} of {found.pool} samples, the same on both sides"
    note = f"interval: of {mean}, the mean over {which}"
    return replace(test.report, ci95=(low, high), n=found.pool, p=p, verdict=verdict, note=note)


def _decide(test: _Test, p: float) -> ColumnReport:
    found, index = test.difference, test.index
    assert found is not None
    n = int(found.n[index])
    if n == 0:
        both = test.report.base is None and test.report.candidate is None
        return replace(test.report, verdict="same" if both else "lost", note="no row has a value in both")
    low, high = float(found.low[index]), float(found.high[index])
    known = not math.isnan(low)
    verdict = _by_value(test.report, low, high) if known else "unclear"
    directed = test.report.higher_is_better is not None
    if verdict == "worse" and test.judged and p > LEVEL:
        verdict = "unclear"  # worse on its own, not among so many columns
    if directed and p <= LEVEL:
        verdict = "worse"
    note = "" if known else "one sample: no interval"
    if test.report.lost > test.max_lost and verdict != "worse":
        verdict, note = "lost", f"{test.report.lost} row(s) have no value any more"
    return replace(
        test.report,
        difference=float(found.mean[index]),
        ci95=(low, high) if known else None,
        n=n,
        p=p if directed else None,
        verdict=verdict,
        note=note,
    )


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
