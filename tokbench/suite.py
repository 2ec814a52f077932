"""Suites: reads `suites/*.toml` and a user's own suite files into `Suite` objects; a suite may include others."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tokbench.errors import CardError, UnknownName
from tokbench.spec import Suite, prepare_for

_HOME = Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    """Return the names of the built-in suites, sorted."""
    return sorted(path.stem for path in _HOME.glob("*.toml"))


def load_suites(references: Sequence[str]) -> list[Suite]:
    """Turn names, globs and paths of suite files into suites, includes resolved, without duplicates.

    An including suite's `tokenizers`, when given, is split over its parts by modality through the registry at plan time.

    Raises:
        UnknownName: No such suite.
        CardError: A suite file with an unknown or missing key; the message names file and key.
    """
    found: dict[str, Suite] = {}
    for reference in references:
        for suite in _load(reference):
            found.setdefault(suite.name, suite)
    return list(found.values())


def describe(name: str) -> Mapping[str, Any]:
    """Return the table of one built-in suite as written, for `list` and `show`."""
    return _table(_HOME / f"{name}.toml")


def _load(reference: str) -> list[Suite]:
    path = Path(reference)
    if path.suffix == ".toml":
        return _read(path)
    names = [name for name in suite_names() if fnmatchcase(name, reference)]
    if not names:
        raise UnknownName("suite", reference, suite_names())
    return [suite for name in names for suite in _read(_HOME / f"{name}.toml")]


def _read(path: Path) -> list[Suite]:
    table = _table(path)
    if "include" in table:
        extra = sorted(set(table) - {"name", "summary", "include", "tokenizers", "limit"})
        if extra:
            raise CardError(f"{path.name}: {extra[0]!r} cannot stand beside include")
        parts = [suite for name in table["include"] for suite in _load(name)]
        chosen = tuple(table.get("tokenizers", ()))
        return [replace(part, tokenizers=chosen or part.tokenizers) for part in parts]
    known = {f.name for f in fields(Suite)}
    for key in table:
        if key not in known:
            raise CardError(f"{path.name}: unknown key {key!r}; a suite has {', '.join(sorted(known))}")
    missing = [key for key in ("name", "modality", "dataset", "prepare", "metrics") if key not in table]
    if missing:
        raise CardError(f"{path.name}: needs {', '.join(missing)}")
    try:
        prepare = prepare_for(table["modality"], table["prepare"])
    except (TypeError, KeyError) as error:
        raise CardError(f"{path.name}: [prepare]: {error}") from error
    listed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    listed["prepare"] = prepare
    return [Suite(**listed)]


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
