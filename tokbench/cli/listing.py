"""`tokbench list`: tokenizers, suites or metrics."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from tokbench.cli import options


class Kind(StrEnum):
    """What can be listed."""

    tokenizers = "tokenizers"
    suites = "suites"
    metrics = "metrics"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.tokenizers,
    pattern: Annotated[str, typer.Argument(help="Glob on the name.")] = "*",
    everything: Annotated[bool, typer.Option("--all", help="Also planned and unreleased tokenizers.")] = False,
    as_json: options.Json = False,
) -> None:
    """List what is registered. Tokenizers and suites come from cards and suite files alone: no model library is imported."""
    rows = {Kind.tokenizers: _tokenizers, Kind.suites: _suites, Kind.metrics: _metrics}[kind](everything)
    from fnmatch import fnmatchcase

    rows = [row for row in rows if fnmatchcase(row["name"], pattern)]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    widths = [max((len(str(row[key])) for row in rows), default=0) for key in (rows[0] if rows else {})]
    for row in rows:
        cells = [str(value).ljust(width) for value, width in zip(row.values(), widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


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
    """Return stride and codebooks in a few characters: `f8x8 1000`, `320 8x1024`, `f8x8 4ch`."""
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
