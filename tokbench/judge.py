"""Judges the columns of two results: paired rows, ratios of sums, subsets of features, or the bare tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokbench.entries import Entry
from tokbench.errors import UsageError
from tokbench.gate import Gate
from tokbench.paired import RESAMPLES, Difference, mean_difference, ratio_difference
from tokbench.rows import Row
from tokbench.subsets import SubsetDifference, subset_differences
from tokbench.verdicts import ColumnReport, Verdict, WorstRow

LEVEL = 0.025
"""One-sided level of the gate: the two-sided 95 % interval lies wholly beyond the tolerance."""

DEFAULT_ATOL = 1e-6

_ALONE = "one number of the set, no interval"


@dataclass(frozen=True)
class ColumnTest:
    """A column before the correction: a finished report, or a difference that awaits its adjusted p-value."""

    report: ColumnReport
    judged: bool = False
    p: float = 1.0
    difference: Difference | None = None
    index: int = 0
    max_lost: int = 0
    subsets: SubsetDifference | None = None


def column_tests(
    left: Entry,
    right: Entry,
    paired: Sequence[tuple[Row, Row]],
    gate: Gate,
    only: Sequence[str],
    resamples: int | None,
) -> list[ColumnTest]:
    """Test every column that both results may show, on the rows that succeeded in both; none is corrected yet."""
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
            tests.append(
                ColumnTest(blank, judged, float(p[index]), found, index, 0 if limit is None else limit.max_lost)
            )
        elif isinstance(on_subsets, SubsetDifference) and blank.candidate is not None:
            sign = -1 if cell["higher_is_better"] else 1
            p_value = on_subsets.p_beyond(sign * blank.tolerance, sign)
            tests.append(ColumnTest(blank, judged, p_value, subsets=on_subsets))
        else:
            tests.append(ColumnTest(_corpus(blank, on_subsets if isinstance(on_subsets, str) else _ALONE)))
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


def decided(test: ColumnTest, p: float) -> ColumnReport:
    """Return the column's report, given its p-value after the correction for all columns."""
    if test.subsets is not None:
        return _decide_on_subsets(test, test.subsets, p)
    return test.report if test.difference is None else _decide(test, p)


def _decide_on_subsets(test: ColumnTest, found: SubsetDifference, p: float) -> ColumnReport:
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


def _decide(test: ColumnTest, p: float) -> ColumnReport:
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
