"""Suites: reads `suites/*.toml` and a user's own suite files into `Suite` objects; a suite may include others."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from tokbench.errors import CardError, UnknownName
from tokbench.spec import Modality, ResizePreset, Rounding, Suite, prepare_for

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
    _check_values(path.name, table)
    try:
        prepare = prepare_for(table["modality"], table["prepare"])
    except TypeError as error:
        raise CardError(f"{path.name}: [prepare]: {str(error).partition('() ')[2] or error}") from error
    listed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    listed["prepare"] = prepare
    return [Suite(**listed)]


def _check_values(name: str, table: Mapping[str, Any]) -> None:
    """Raise CardError for a value no run could use, before any file is read."""
    prepare = table["prepare"]
    if not isinstance(prepare, Mapping):
        raise CardError(f"{name}: prepare is a table: [prepare]")
    chosen = {
        "modality": (table["modality"], get_args(Modality)),
        "rounding": (table.get("rounding", "round"), get_args(Rounding)),
        "[prepare] preset": (prepare.get("preset", "adm"), get_args(ResizePreset)),
        "[prepare] channels": (prepare.get("channels", "mono"), ("mono", "native")),
    }
    for key, (value, choices) in chosen.items():
        if value not in choices:
            raise CardError(f"{name}: {key} = {value!r}; choose {', '.join(choices)}")
    for key in ("size", "frames", "fps", "clips", "sample_rate", "seconds"):
        value = prepare.get(key, 1)
        if key == "sample_rate" and value == "native":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CardError(f"{name}: [prepare] {key} = {value!r}; give a positive number")
    for key in ("metrics", "tokenizers", "board"):
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise CardError(f"{name}: {key} = {value!r}; give a list of names")


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
