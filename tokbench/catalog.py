"""Reads catalogs: TOML files of cards, a family a file, into `Card` objects, without importing torch or any adapter."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tokbench.errors import CardError
from tokbench.spec import Card, FrameRule, Option, OptionSpec, Reported, TokenizerSpec, WeightFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_TABLES = {"option": OptionSpec, "weight": WeightFile, "reported": Reported}


def read_catalog(path: Path, source: str = "tokbench") -> tuple[Card, ...]:
    """Return the cards of one catalog file, not yet at an operating point (see `at_point`).

    Raises:
        CardError: The file is not TOML, has an unknown key or misses a needed one; the message names file, card and key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path.name}: {error}") from error
    unknown = sorted(set(table) - {"family", "tokenizer"})
    if unknown:
        raise CardError(f"{path.name}: unknown table {unknown[0]!r}; a catalog has [family] and [[tokenizer]]")
    family = dict(table.get("family", {}))
    family_name = family.pop("name", path.stem)
    return tuple(_card(path, source, str(family_name), family, entry) for entry in table.get("tokenizer", []))


def at_point(card: Card, chosen: Mapping[str, Option]) -> Card:
    """Return the card at an operating point: options checked, spec keys of the point applied, name spelled in full.

    The name carries each option that some operating point of the card sets, and each the caller chose.

    Raises:
        CardError: An option the card does not have, or a value outside its choices or bounds.
    """
    specs = {spec.name: spec for spec in card.option_specs}
    values = {name: spec.default for name, spec in specs.items()}
    for key, raw in chosen.items():
        if key not in specs:
            known = ", ".join(specs) or "none"
            raise CardError(f"{card.name} has no option {key!r}; its options: {known}")
        values[key] = _checked(card.name, specs[key], raw)
    operating = {key for point in card.points for key in parse_options(point)}
    shown = [key for key in specs if key in operating or key in chosen]
    query = "&".join(f"{key}={format_option(values[key])}" for key in shown)
    overrides: dict[str, Any] = {}
    for point, changes in card.point_specs.items():
        wanted = {k: _checked(card.name, specs[k], v) for k, v in parse_options(point).items()}
        if all(values[k] == v for k, v in wanted.items()):
            overrides.update(changes)
    name = f"{card.name}?{query}" if query else card.name
    spec = replace(card.spec, name=name, **_spec_keys(card.name, overrides))
    return replace(card, options=values, spec=spec)


def parse_options(query: str) -> dict[str, Option]:
    """Parse `a=1&b=x` into a dict of strings. Raises CardError when a part has no `=`."""
    out: dict[str, Option] = {}
    for part in filter(None, query.split("&")):
        key, sign, value = part.partition("=")
        if not sign or not key:
            raise CardError(f"{part!r} is not key=value; write name?key=value&key=value")
        out[key] = value
    return out


def format_option(value: Option) -> str:
    """Spell an option value the one way it stands in names: 6.0 -> `6`, True -> `true`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked(owner: str, spec: OptionSpec, raw: Option) -> Option:
    try:
        value = _cast(raw, spec.default)
    except ValueError as error:
        kind = type(spec.default).__name__
        raise CardError(f"{owner}: {spec.name}={raw} is not of type {kind}") from error
    if spec.choices and value not in spec.choices:
        choices = ", ".join(format_option(choice) for choice in spec.choices)
        raise CardError(f"{owner}: {spec.name}={raw} is not one of {choices}")
    if not isinstance(value, str):
        low, high = spec.minimum, spec.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise CardError(f"{owner}: {spec.name}={raw} is out of bounds (minimum {low}, maximum {high})")
    return value


def _cast(raw: Option, like: Option) -> Option:
    if isinstance(like, bool):
        if str(raw).lower() in {"true", "1", "yes"}:
            return True
        if str(raw).lower() in {"false", "0", "no"}:
            return False
        raise ValueError(raw)
    if isinstance(like, int):
        return int(raw)
    return float(raw) if isinstance(like, float) else str(raw)


def _card(path: Path, source: str, family: str, defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> Card:
    name = str(entry.get("name", ""))
    where = f"{path.name}: {name or 'a [[tokenizer]] without a name'}"
    if not _NAME.fullmatch(name):
        raise CardError(f"{where}: names are letters, digits and . _ + -")
    merged = {**defaults, **entry}
    spec = {**defaults.get("spec", {}), **entry.get("spec", {})}
    points = {**defaults.get("point", {}), **entry.get("point", {})}
    tables = {key: [*defaults.get(key, []), *entry.get(key, [])] for key in _TABLES}
    for key in ("spec", "point", *_TABLES):
        merged.pop(key, None)
    architecture = {**defaults.get("architecture", {}), **entry.get("architecture", {})}
    merged["architecture"] = architecture
    merged["point_specs"] = points
    _known(where, Card, merged)
    if "target" not in merged or "modality" not in spec or "kind" not in spec:
        raise CardError(f"{where}: needs target, spec.modality and spec.kind")
    merged["points"] = tuple(merged.get("points", ()))
    card = Card(
        **{**merged, "name": name, "family": family, "source": source},
        spec=TokenizerSpec(name=name, **_spec_keys(where, spec)),
        option_specs=tuple(_build(where, OptionSpec, row) for row in tables["option"]),
        weights=tuple(_build(where, WeightFile, row) for row in tables["weight"]),
        reported=tuple(_build(where, Reported, row) for row in tables["reported"]),
    )
    for point in ("", *card.points, *points):
        try:
            at_point(card, parse_options(point))
        except CardError as error:
            raise CardError(f"{path.name}: {error}") from error
    return card


def _spec_keys(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    keys = dict(table)
    count = keys.pop("num_codebooks", None)
    size = keys.get("codebook_size")
    if count is not None and size is None:
        raise CardError(f"{where}: num_codebooks needs codebook_size beside it")
    if isinstance(size, int):
        keys["codebook_size"] = (size,) * int(count or 1)
    if "frames" in keys:
        keys["frames"] = FrameRule(**keys["frames"])
    _known(f"{where}: spec", TokenizerSpec, keys)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}


def _build(where: str, kind: Any, row: Mapping[str, Any]) -> Any:
    _known(where, kind, row)
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})
    except TypeError as error:
        raise CardError(f"{where}: {error}") from error


def _known(where: str, kind: Any, table: Mapping[str, Any]) -> None:
    known: Sequence[str] = [f.name for f in fields(kind)]
    for key in table:
        if key not in known:
            raise CardError(f"{where}: unknown key {key!r}; {kind.__name__} has {', '.join(known)}")
