"""Names to objects through one door: catalogs and metrics from entry points, and `path.py:Class`; lazy, did-you-mean."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokbench.catalog import at_point, parse_options, read_catalog
from tokbench.errors import CardError, ContractError, MissingExtra, UnknownName, UsageError
from tokbench.spec import Card, TokenizerSpec

if TYPE_CHECKING:
    from tokbench.types import AdapterFactory, Metric, Tokenizer, Weights

CATALOGS = "tokbench.catalogs"
METRICS = "tokbench.metrics"
_FILE_REF = re.compile(r"(?P<path>.+\.(?:py|toml)):(?P<name>[A-Za-z_][\w.+-]*)")


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be read: listed, never fatal."""

    name: str
    reason: str


@dataclass(frozen=True)
class Catalogs:
    """Every card found on this machine, by name, and the plugins that failed."""

    cards: Mapping[str, Card]
    broken: tuple[Broken, ...]


@cache
def catalogs() -> Catalogs:
    """Read all catalogs of the entry-point group `tokbench.catalogs`. Imports the packages' parents only.

    Raises:
        CardError: Two catalogs define one name; both are named.
    """
    cards: dict[str, Card] = {}
    broken: list[Broken] = []
    for point in _points(CATALOGS):
        source = point.dist.name if point.dist else point.name
        try:
            found = [card for path in _catalog_files(point) for card in read_catalog(path, source)]
        except (CardError, ImportError, OSError) as error:
            if source == "tokbench":
                raise
            broken.append(Broken(f"{source}:{point.name}", str(error)))
            continue
        for card in found:
            if card.name in cards:
                raise CardError(f"two cards are called {card.name!r}: from {cards[card.name].source} and from {source}")
            cards[card.name] = card
    return Catalogs(dict(sorted(cards.items())), tuple(broken))


def expand(patterns: Sequence[str]) -> list[Card]:
    """Turn names, globs, `@list.txt`, `path.py:Class` and `cards.toml:name` into cards, in order, without duplicates.

    A glob matches names (`taesd*`) and, where it holds a `?key` part after an escaped or literal `?`, the operating points
    (`jpeg?*`, `jpeg?quality=[1-4]*`).

    Raises:
        UnknownName: A name or glob that matches nothing.
        CardError: A wrong option.
        UsageError: Two different tokenizers of one name.
    """
    found: dict[str, Card] = {}
    for pattern in patterns:
        for card in _expand_one(pattern):
            other = found.setdefault(card.spec.name, card)
            if other.identity() != card.identity():
                raise UsageError(f"{other.target} and {card.target} are both called {card.spec.name!r}; rename one")
    return list(found.values())


def _expand_one(pattern: str) -> list[Card]:
    if pattern.startswith("@"):
        return expand(_lines(Path(pattern[1:])))
    name, _, query = pattern.partition("?")
    if match := _FILE_REF.fullmatch(name):
        path, member = Path(match["path"]), match["name"]
        if path.suffix == ".toml":
            known = {card.name: card for card in read_catalog(path, f"file:{_sha256(path)}")}
            if member not in known:
                raise UnknownName(f"card of {path.name}", member, known)
            return [at_point(known[member], parse_options(query))]
        return [_file_card(path, member, parse_options(query))]
    known = dict(catalogs().cards)
    if name in known and not any(sign in query for sign in "*["):
        card = known[name]
        weights = parse_options(query)
        override = weights.pop("weights", None)
        card = at_point(card, weights)
        return [card if override is None else with_weights(card, Path(str(override)))]
    matches: list[Card] = []
    for card in known.values():
        if card.status != "available" or not fnmatchcase(card.name, name):
            continue
        if not query:
            matches.append(at_point(card, {}))
        else:
            matches += [c for c in operating_points(card) if fnmatchcase(c.spec.name.partition("?")[2], query)]
    if not matches:
        points = [card.spec.name for base in known.values() for card in operating_points(base)]
        raise UnknownName("tokenizer", pattern, [*known, *points])
    return matches


def operating_points(card: Card) -> list[Card]:
    """Return the card once per declared operating point, or itself when it declares none."""
    return [at_point(card, parse_options(point)) for point in card.points] or [at_point(card, {})]


def with_weights(card: Card, path: Path) -> Card:
    """Return the card reading its weights from a file or directory; the row's name says so."""
    if not path.exists():
        raise UsageError(f"{card.name}?weights={path}: no such file or directory")
    sign = "&" if "?" in card.spec.name else "?"
    spec = replace(card.spec, name=f"{card.spec.name}{sign}weights={path.name}")
    return replace(card, spec=spec, options={**card.options, "weights": str(path.resolve())})


def build_tokenizer(card: Card, weights: Weights) -> Tokenizer:
    """Import the adapter and construct it.

    Raises:
        MissingExtra: The library it needs is not installed; the message carries the command that installs it.
        ContractError: The object lacks `spec`, `encode` or `decode`.
    """
    factory = _import_target(card)
    if _is_file(card):
        built: Any = cast(Any, factory)(**card.options)
    else:
        built = cast("AdapterFactory", factory)(card, weights)
    missing = [name for name in ("spec", "encode", "decode") if not hasattr(built, name)]
    if missing:
        raise ContractError(f"{card.target} has no {', '.join(missing)}; a tokenizer has spec, encode and decode")
    return cast("Tokenizer", built)


def metric_names() -> list[str]:
    """Return the names of all registered metrics, sorted, without importing them."""
    return sorted({point.name for point in _points(METRICS)})


def build_metric(reference: str) -> Metric:
    """Build a metric from `name`, `name?key=value` or `path.py:Class`.

    Raises:
        UnknownName, UsageError: No such metric, or options it does not take.
        MissingExtra: A library it needs is not installed.
    """
    name, _, query = reference.partition("?")
    options = {key: _literal(str(value)) for key, value in parse_options(query).items()}
    if match := _FILE_REF.fullmatch(name):
        factory = _load_file(Path(match["path"]), match["name"])
    else:
        points = {point.name: point for point in _points(METRICS)}
        if name not in points:
            raise UnknownName("metric", name, points)
        factory = _guarded(points[name].load, name, None)
    try:
        return cast("Metric", factory(**options))
    except TypeError as error:
        raise UsageError(f"metric {reference!r}: {error}") from error


@cache
def _points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


def _catalog_files(point: EntryPoint) -> list[Path]:
    spec = importlib.util.find_spec(point.module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"entry point {point.name} = {point.value}: not a package with cards")
    files = [path for root in spec.submodule_search_locations for path in Path(root).glob("*.toml")]
    return sorted(files)


def _is_file(card: Card) -> bool:
    return bool(_FILE_REF.fullmatch(card.target))


def _import_target(card: Card) -> Any:
    if match := _FILE_REF.fullmatch(card.target):
        return _load_file(Path(match["path"]), match["name"])
    module, _, attribute = card.target.partition(":")
    return _guarded(lambda: getattr(importlib.import_module(module), attribute), card.name, card.extra)


def _guarded(load: Any, name: str, extra: str | None) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        if extra is None:
            raise UsageError(f"{name} cannot be imported: {error}") from error
        raise MissingExtra(f"{name} needs {error.name}", f'pip install "tokbench[{extra}]"') from error


def _file_card(path: Path, member: str, options: Mapping[str, Any]) -> Card:
    target = f"{path.resolve()}:{member}"
    factory = _load_file(path, member)
    values = {key: _literal(str(value)) for key, value in options.items()}
    spec = getattr(factory, "spec", None)
    if not isinstance(spec, TokenizerSpec):
        try:
            spec = getattr(factory(**values), "spec", None)
        except TypeError as error:
            raise UsageError(f"{path.name}:{member}: {error}") from error
    if not isinstance(spec, TokenizerSpec):
        raise ContractError(f"{path.name}:{member} has no `spec` of type tokbench.spec.TokenizerSpec")
    if values and "?" not in spec.name:
        spec = replace(spec, name=spec.name + "?" + "&".join(f"{k}={v}" for k, v in sorted(values.items())))
    return Card(
        name=spec.name.partition("?")[0],
        family=path.stem,
        target=target,
        spec=spec,
        summary=(factory.__doc__ or "").strip().partition("\n")[0],
        options=values,
        source=f"file:{_sha256(path)}",
    )


def _load_file(path: Path, member: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; write path/to/file.py:Class")
    # One module per content, so that a changed file is not taken for the one loaded before.
    name = f"tokbench_file_{path.stem}_{_sha256(path)[:12]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    if not hasattr(module, member):
        raise UnknownName(f"class of {path.name}", member, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, member)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"@{path}: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _literal(text: str) -> str | int | float | bool:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
