"""`tokbench list`: tokenizers, suites or metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from tokbench.cli import options

# What a narrow terminal can do without, the first to go first.
_LESS = {
    "tokenizers": ("status", "licence", "kind", "geometry"),
    "suites": ("dataset", "modality"),
    "metrics": ("columns", "modalities"),
}


class Kind(StrEnum):
    """What can be listed."""

    tokenizers = "tokenizers"
    suites = "suites"
    metrics = "metrics"


class Modality(StrEnum):
    """What tokenizers, suites and metrics are for."""

    image = "image"
    video = "video"
    audio = "audio"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.tokenizers,
    pattern: Annotated[str, typer.Argument(help="Glob on the name.")] = "*",
    everything: Annotated[bool, typer.Option("--all", help="Also planned and unreleased tokenizers.")] = False,
    as_json: options.Json = False,
    modality: Annotated[Modality | None, typer.Option("--modality", help="Only what is for it.")] = None,
) -> None:
    """List what is registered. Tokenizers and suites come from cards and suite files alone: no model library is imported."""
    rows = {Kind.tokenizers: _tokenizers, Kind.suites: _suites, Kind.metrics: _metrics}[kind](everything)
    from fnmatch import fnmatchcase

    if modality is not None:
        wanted = {str(modality), "all"}
        rows = [row for row in rows if wanted & set(str(row.get("modality") or row["modalities"]).split(","))]
    names = [row["name"] for row in rows]
    rows = [row for row in rows if fnmatchcase(row["name"], pattern)]
    if not rows and pattern != "*":
        _nothing(kind, pattern, names, everything)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tokbench.cli.tables import print_list

    print_list(rows, _LESS[kind])


def _nothing(kind: Kind, pattern: str, names: Sequence[str], everything: bool) -> NoReturn:
    """Say that no name fits, and what is near, or where it is."""
    from fnmatch import fnmatchcase

    from tokbench.errors import UsageError, nearest

    if kind is Kind.tokenizers and not everything:
        hidden = [row["name"] for row in _tokenizers(everything=True) if fnmatchcase(row["name"], pattern)]
        if hidden:
            raise UsageError(f"{pattern}: planned or unreleased ({', '.join(hidden[:5])}); add --all")
    near = nearest(pattern, names)
    hint = f"; did you mean {' or '.join(near)}?" if near else f". See `tokbench list {kind}`."
    raise UsageError(f"no {kind.removesuffix('s')} fits {pattern!r}{hint}")


def _tokenizers(everything: bool) -> list[dict[str, Any]]:
    from tokbench.catalog import at_point
    from tokbench.registry import catalogs

    found = catalogs()
    for plugin in found.broken:
        typer.echo(f"plugin {plugin.name} was not loaded: {plugin.reason}", err=True)
    return [
        {
            "name": card.name,
            "modality": card.spec.modality,
            "kind": card.spec.kind,
            "geometry": geometry(at_point(card, {}).spec),
            "licence": card.licence,
            "status": card.status,
            "summary": card.summary,
        }
        for card in found.cards.values()
        if everything or card.status == "available"
    ]


def _suites(everything: bool) -> list[dict[str, Any]]:
    from tokbench.suite import describe, suite_names

    del everything
    tables = [(name, describe(name)) for name in suite_names()]
    return [
        {
            "name": name,
            "modality": table.get("modality", "all" if "include" in table else ""),
            "dataset": table.get("dataset", " + ".join(table.get("include", ()))),
            "summary": table.get("summary", ""),
        }
        for name, table in tables
    ]


def _metrics(everything: bool) -> list[dict[str, Any]]:
    from tokbench.errors import TokbenchError
    from tokbench.registry import build_metric, metric_names

    del everything
    rows = []
    for name in metric_names():
        try:
            spec = build_metric(name).spec
        except TokbenchError as error:
            typer.echo(f"metric {name} was not loaded: {error}", err=True)
            continue
        columns = [column.name for column in spec.columns if column.level]
        about = {"modalities": ",".join(spec.modalities), "columns": ",".join(columns), "summary": spec.summary}
        rows.append({"name": name, **about})
    return rows


def geometry(spec: Any) -> str:
    """Return stride, rate and codebooks in a few characters: `/8x8 1000`, `/320 16kHz 8x1024`, `/8x8 4ch`."""
    parts = []
    if spec.downsample:
        parts.append("/" + "x".join(str(stride) for stride in spec.downsample))
    if spec.sample_rate:
        parts.append(f"{spec.sample_rate / 1000:g}kHz")
    sizes = spec.codebook_size
    if sizes:
        parts.append(
            f"{len(sizes)}x{sizes[0]}" if len(set(sizes)) == 1 and len(sizes) > 1 else ",".join(map(str, sizes))
        )
    if spec.latent_channels:
        parts.append(f"{spec.latent_channels}ch")
    return " ".join(parts)
