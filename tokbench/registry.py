"""Names to objects through one door: catalogs and metrics from entry points, and `path.py:Class`; lazy, did-you-mean."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokbench.catalog import at_point, parse_options, read_catalog
from tokbench.errors import (
    CardError,
    ContractError,
    MissingExtra,
    TokbenchError,
    UnknownName,
    UsageError,
    install_command,
)
from tokbench.spec import Card, MetricSpec, TokenizerSpec

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
    return distinct(card for cards in expand_each(patterns).values() for card in cards)


def expand_each(patterns: Sequence[str]) -> dict[str, list[Card]]:
    """Return each pattern's cards, as `expand` does; looking at a user's file may cost reading its checkpoint."""
    return {pattern: _expand_one(pattern) for pattern in dict.fromkeys(patterns)}


def distinct(cards: Iterable[Card]) -> list[Card]:
    """Return cards without duplicates, in order. Raises UsageError for two different tokenizers of one name."""
    found: dict[str, Card] = {}
    for card in cards:
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
    if name.endswith((".py", ".toml")):
        raise _no_member(name)
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
        ContractError: The object is no tokenizer, see `as_tokenizer`.
        UsageError: A class of a user's file raised.
    """
    factory = _import_target(card)
    if match := _FILE_REF.fullmatch(card.target):
        built: Any = _constructed(factory, Path(match["path"]), match["name"], card.options)
    else:
        built = cast("AdapterFactory", factory)(card, weights)
    tokenizer = as_tokenizer(built, Path(card.target).name)
    _evaluating(tokenizer)
    return tokenizer


def as_tokenizer(built: Any, name: str) -> Tokenizer:
    """Return an object as the tokenizer it is.

    Raises:
        ContractError: The object lacks `spec`, `encode` or `decode`, or is a class.
    """
    if isinstance(built, type):
        raise ContractError(f"{name} is a class; give an object of it: {built.__name__}(...)")
    missing = [part for part in ("spec", "encode", "decode") if not hasattr(built, part)]
    if missing:
        raise ContractError(f"{name} has no {', '.join(missing)}; a tokenizer has spec, encode and decode")
    if not isinstance(built.spec, TokenizerSpec):
        raise ContractError(f"the spec of {name} is no tokbench.spec.TokenizerSpec")
    return cast("Tokenizer", built)


def _evaluating(built: Any) -> None:
    """Put a tokenizer that is itself a `torch.nn.Module` in evaluation mode."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(built, torch.nn.Module):
        built.eval()


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
        path, member = Path(match["path"]), match["name"]
        return _marked(_constructed(_load_file(path, member), path, member, options), path)
    if name.endswith(".py"):
        raise _no_member(name)
    points = {point.name: point for point in _points(METRICS)}
    if name not in points:
        raise UnknownName("metric", name, points)
    factory = _guarded(points[name].load, name, None)
    try:
        return cast("Metric", factory(**options))
    except TypeError as error:
        known = ", ".join(inspect.signature(factory).parameters) or "none"
        raise UsageError(f"metric {reference!r}: {error}; its options: {known}") from error


def _marked(metric: Any, path: Path) -> Metric:
    """Put the digest of a metric's file among its settings: an edited file is another metric, whatever its version says."""
    spec = getattr(metric, "spec", None)
    if not isinstance(spec, MetricSpec):
        raise ContractError(f"{path.name}: the metric has no `spec` of type tokbench.spec.MetricSpec")
    with suppress(AttributeError):  # a computed spec stays as it is
        object.__setattr__(metric, "spec", replace(spec, protocol={**spec.protocol, "file": _sha256(path)[:16]}))
    return cast("Metric", metric)


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
        raise MissingExtra(f"{name} needs {error.name}", install_command(extra)) from error


def _file_card(path: Path, member: str, options: Mapping[str, Any]) -> Card:
    target = f"{path.resolve()}:{member}"
    factory = _load_file(path, member)
    values = {key: _literal(str(value)) for key, value in options.items()}
    # A checkpoint that is overwritten is another tokenizer: its content is part of what the row's key is made of.
    named = {key: Path(value).expanduser() for key, value in values.items() if isinstance(value, str) and value}
    files = {key: place for key, place in named.items() if place.exists()}
    spec = getattr(factory, "spec", None)
    if not isinstance(spec, TokenizerSpec):
        spec = getattr(_constructed(factory, path, member, values), "spec", None)
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
        source=f"file:{_sha256(path)}" + "".join(f"+{key}:{_content(value)}" for key, value in sorted(files.items())),
    )


def _content(path: Path) -> str:
    """Return what tells one content of a file from another: its digest; of a folder, the sizes and times of its files."""
    if path.is_file():
        return _sha256(path)[:16]
    found = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    listing = [(name, status.st_size, status.st_mtime_ns) for name, status in found]
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:16]


def _constructed(factory: Any, path: Path, member: str, options: Mapping[str, Any]) -> Any:
    """Call a class of a user's file; what it raises is told with the line of that file."""
    try:
        return factory(**options)
    except TokbenchError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and not _lines_of(path, error):  # the call itself does not fit
            known = ", ".join(inspect.signature(factory).parameters) or "none"
            raise UsageError(f"{path.name}:{member}: {error}; its options: {known}") from error
        raise _told(path, error) from error


def _no_member(name: str) -> UsageError:
    kind = "card" if name.endswith(".toml") else "Class"
    return UsageError(f"{name}: name the {kind.lower()} in it: {name}:{kind}")


def _told(path: Path, error: Exception) -> UsageError:
    """Return an error of a user's file as one sentence with its line."""
    lines = [error.lineno] if isinstance(error, SyntaxError) else _lines_of(path, error)
    where = f", line {lines[-1]}" if lines else ""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return UsageError(f"{path.name}{where}: {type(error).__name__}: {text[:600]}")


def _lines_of(path: Path, error: Exception) -> list[int]:
    """Return the lines of a file that an error went through, the deepest last."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if Path(frame.filename).name == path.name and frame.lineno is not None]


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
        # What lies beside the file can be imported by it, as in a script; behind everything installed, which others need.
        if (folder := str(path.resolve().parent)) not in sys.path:
            sys.path.append(folder)
        try:
            spec.loader.exec_module(module)
        except TokbenchError:
            del sys.modules[name]
            raise
        except Exception as error:
            del sys.modules[name]
            raise _told(path, error) from error
        except BaseException:
            del sys.modules[name]
            raise
    if not hasattr(module, member):
        here = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == name and callable(value)]
        raise UnknownName(f"class of {path.name}", member, here)
    return getattr(module, member)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
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
