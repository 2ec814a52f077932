"""What a comparison says: verdicts a column, a pair of results, and the whole call with its exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "better", "unclear", "worse", "changed", "lost"]


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
