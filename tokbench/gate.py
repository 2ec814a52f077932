"""What a regression gate allows: the gate file and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokbench.errors import UsageError


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


DEFAULT_GATE = Gate()
"""Every column with a direction is held to its own tolerance; no row may fail that did not."""


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
