"""Declared boards and published numbers: `leaderboards/boards/*.toml` and `leaderboards/reported/*.toml`, read strictly."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from tokbench.errors import UsageError
from tokbench.spec import CodeKind, Modality

T = TypeVar("T")


@dataclass(frozen=True)
class ReportedColumn:
    """A column of published numbers, described once a file."""

    name: str
    unit: str = ""
    higher_is_better: bool | None = None
    decimals: int = 2
    description: str = ""


@dataclass(frozen=True)
class ReportedValue:
    """A published number with the digits its source gives.

    Attributes:
        text: As written, `0.90` and `3.40-3.46`; "" for a number that was derived.
        upper: Where sources differ and give a range.
        verified: False where it was not read in the source.
    """

    value: float
    upper: float | None = None
    verified: bool = True
    text: str = ""


@dataclass(frozen=True)
class ReportedRow:
    """One tokenizer of a published table.

    Attributes:
        card: Name of the same checkpoint in tokbench, where it has one: joins a measured row.
        kind: What its encoder emits, "" where not stated.
        tokens: Positions a sample of the table's size (images, clips), as published.
        codebook_size: Entries of each codebook, None where unknown.
        source: Where this row was read, when not the table's.
    """

    tokenizer: str
    values: Mapping[str, ReportedValue]
    card: str = ""
    kind: str = ""
    tokens: int | None = None
    codebook_size: int | None = None
    num_codebooks: int = 1
    licence: str = ""
    source: str = ""
    note: str = ""

    def bits(self) -> float | None:
        """Return nominal bits a sample, or None where tokens or codebook are not known."""
        if self.tokens is None or self.codebook_size is None:
            return None
        return self.tokens * self.num_codebooks * math.log2(self.codebook_size)


@dataclass(frozen=True)
class ReportedTable:
    """Published numbers of one protocol.

    Attributes:
        name: `file/preset`, what boards refer to.
        preset: The protocol the numbers were made with, by the name the documentation gives it.
        date: When the numbers were read in their source, YYYY-MM-DD.
        size: (H, W) of images or clips; gives bits per pixel.
        samples: Files the numbers were made with; a result of another number of files is not set against them.
    """

    name: str
    modality: Modality
    dataset: str
    preset: str
    protocol: str
    source: str
    date: str
    columns: tuple[ReportedColumn, ...]
    rows: tuple[ReportedRow, ...]
    size: tuple[int, int] | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Budget:
    """Bins of a rate column; rows are ranked within one. `edges` [0.25, 0.5] make three groups."""

    column: str
    edges: tuple[float, ...]

    def group(self, value: float | None) -> str:
        """Return the name of the bin that holds `value`, e.g. `bpp 0.25-0.5`; a bin holds its upper edge."""
        if value is None:
            return f"no {self.column}"
        low = max((edge for edge in self.edges if edge < value), default=None)
        high = min((edge for edge in self.edges if edge >= value), default=None)
        if low is None:
            return f"{self.column} ≤ {high:g}" if high is not None else self.column
        return f"{self.column} {low:g}–{high:g}" if high is not None else f"{self.column} > {low:g}"


@dataclass(frozen=True)
class Plot:
    """A scatter of two columns; points of one family are joined."""

    x: str
    y: str
    log: bool = True


@dataclass(frozen=True)
class BoardSpec:
    """A board somebody declared.

    Attributes:
        suite: Measured results to show; "" for a board of published numbers only.
        reported: Names of reported tables to show; on a board with a suite they must be of its protocol.
        columns: Columns shown, in order.
        sort: Column that ranks within a budget group; "" for no rank.
    """

    name: str
    title: str
    modality: Modality
    columns: tuple[str, ...]
    summary: str = ""
    suite: str = ""
    reported: tuple[str, ...] = ()
    sort: str = ""
    budget: Budget | None = None
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Declared:
    """Everything under a `leaderboards/` directory but results."""

    boards: tuple[BoardSpec, ...]
    tables: Mapping[str, ReportedTable]


def load_declared(root: Path) -> Declared:
    """Read and check `root/boards/*.toml` and `root/reported/*.toml`.

    Raises:
        UsageError: Not there, no TOML, an unknown or missing key, a wrong type, or a table no file has; names file and key.
    """
    if not (root / "boards").is_dir():
        raise UsageError(f"{root}: has no boards/ directory; name a directory with boards/*.toml and reported/*.toml")
    tables: dict[str, ReportedTable] = {}
    for path in sorted((root / "reported").glob("*.toml")):
        for table in _tables(path):
            if table.name in tables:
                raise UsageError(f"{path}: table {table.name} is there twice")
            tables[table.name] = table
    found = [_board(path) for path in sorted((root / "boards").glob("*.toml"))]
    boards = tuple(sorted(found, key=lambda board: (not board.suite, board.name)))  # measured ones first
    for board in boards:
        for name in board.reported:
            if name not in tables:
                raise UsageError(f"boards/{board.name}.toml: no reported table {name!r}; there are {', '.join(tables)}")
            if tables[name].modality != board.modality:
                raise UsageError(
                    f"boards/{board.name}.toml: {name} is {tables[name].modality}, the board {board.modality}"
                )
        if not board.suite and not board.reported:
            raise UsageError(f"boards/{board.name}.toml: needs a suite or reported tables")
    return Declared(boards, tables)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _board(path: Path) -> BoardSpec:
    raw = _read(path)
    where = path.name
    budget = raw.get("budget")
    values = {
        **raw,
        "name": path.stem,
        "columns": _texts(raw.get("columns", []), f"{where}: columns"),
        "reported": _texts(raw.get("reported", []), f"{where}: reported"),
        "plots": tuple(_build(Plot, item, f"{where}: plots") for item in raw.get("plots", [])),
    }
    if budget is not None:
        edges = budget.get("edges", [])
        if not edges or sorted(set(edges)) != edges:
            raise UsageError(f"{where}: budget.edges rise, and there is at least one")
        values["budget"] = _build(Budget, {**budget, "edges": tuple(map(float, edges))}, f"{where}: budget")
    board = _build(BoardSpec, values, where)
    _modality(board.modality, where)
    return board


def _tables(path: Path) -> list[ReportedTable]:
    raw = _read(path)
    _known(raw, {"modality", "dataset", "date", "size", "samples", "column", "table"}, path.name)
    columns = {entry["name"]: _build(ReportedColumn, entry, f"{path.name}: column") for entry in raw.get("column", [])}
    out = []
    for entry in raw.get("table", []):
        preset = str(entry.get("preset", ""))
        where = f"{path.name}: table {preset or '?'}"
        shared = {key: raw[key] for key in ("modality", "dataset", "date", "size", "samples") if key in raw}
        table = {**shared, **entry}
        names = [key for key in columns if any(key in row.get("values", {}) for row in entry.get("row", []))]
        size = table.get("size")
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(table.get("date", ""))):
            raise UsageError(f"{where}: date is YYYY-MM-DD, quoted")
        table |= {
            "name": f"{path.stem}/{preset}",
            "date": str(table["date"]),
            "columns": tuple(columns[key] for key in names),
            "size": None if size is None else _size(size, where),
            "rows": tuple(_row(row, columns, where) for row in entry.get("row", [])),
        }
        table.pop("row", None)
        found = _build(ReportedTable, table, where)
        _modality(found.modality, where)
        out.append(found)
    return out


def _row(raw: Mapping[str, Any], columns: Mapping[str, ReportedColumn], where: str) -> ReportedRow:
    label = f"{where}: {raw.get('tokenizer', '?')}"
    body = dict(raw)
    doubtful = body.pop("unverified", [])
    given = body.get("values", {})
    everything = doubtful is True
    for key in [*given, *([] if everything else doubtful)]:
        if key not in columns:
            raise UsageError(f"{label}: unknown column {key}; the file describes {', '.join(columns)}")
    if not given:
        raise UsageError(f"{label}: has no values")
    body["values"] = {
        key: _value(value, not everything and key not in doubtful, f"{label}: {key}") for key, value in given.items()
    }
    if body.get("kind", "") not in {"", *get_args(CodeKind)}:
        raise UsageError(f"{label}: kind is one of {', '.join(get_args(CodeKind))}")
    return _build(ReportedRow, body, label)


def _value(raw: object, verified: bool, where: str) -> ReportedValue:
    pair = raw if isinstance(raw, list) else [raw]
    numbers = [float(item) for item in pair if isinstance(item, int | Decimal) and not isinstance(item, bool)]
    if len(numbers) != len(pair) or len(pair) not in {1, 2} or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{where}: a number, or [low, high] where sources differ, not {raw!r}")
    if numbers != sorted(numbers):
        raise UsageError(f"{where}: the range {raw!r} runs from low to high")
    return ReportedValue(numbers[0], numbers[1] if len(numbers) == 2 else None, verified, "–".join(map(str, pair)))


def _size(raw: object, where: str) -> tuple[int, int]:
    if not isinstance(raw, list) or len(raw) != 2 or not all(isinstance(side, int) for side in raw):
        raise UsageError(f"{where}: size is [height, width]")
    return (raw[0], raw[1])


def _texts(raw: object, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise UsageError(f"{where} is a list of names")
    return tuple(raw)


def _modality(value: str, where: str) -> None:
    if value not in get_args(Modality):
        raise UsageError(f"{where}: modality is one of {', '.join(get_args(Modality))}")


def _known(raw: Mapping[str, Any], known: Sequence[str] | set[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")


_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float, Decimal)}


def _build(kind: type[T], raw: object, where: str) -> T:
    """Build a dataclass from a table: unknown and missing keys and wrong plain types are errors."""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where}: is a table")
    described = fields(cast("Any", kind))
    _known(raw, [item.name for item in described], where)
    for item in described:
        expected = _TYPES.get(str(item.type).partition(" ")[0])
        value = raw.get(item.name)
        if (
            value is not None
            and expected
            and (not isinstance(value, expected) or isinstance(value, bool) != (expected == (bool,)))
        ):
            raise UsageError(f"{where}: {item.name} is {item.type}, not {value!r}")
    try:
        return kind(**raw)
    except TypeError as error:
        raise UsageError(f"{where}: {str(error).partition('() ')[2]}") from error
