"""`tokbench show NAME`: everything a card, suite or metric says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tokbench.cli import options


def show(
    name: Annotated[str, typer.Argument(help="A tokenizer (with options), suite or metric.")],
    card: Annotated[
        bool, typer.Option("--card", help="Print the metric block of a Hugging Face model card from measured results.")
    ] = False,
    output: options.Output = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Print a card, a suite or a metric: geometry, licence, weights and where they are, options, reported numbers."""
    if card:
        typer.echo(_model_card(name, output), nl=False)
        return
    from tokbench.errors import UnknownName, UsageError, nearest
    from tokbench.registry import metric_names
    from tokbench.suite import describe, suite_names

    if name in suite_names():
        about: dict[str, Any] = dict(describe(name))
    elif name.partition("?")[0] in metric_names():
        about = _metric(name)
    else:
        try:
            about = _card(name)
        except UnknownName as error:
            if error.kind != "tokenizer":
                raise
            near = nearest(name, [*error.near, *suite_names(), *metric_names()])
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise UsageError(f"no tokenizer, suite or metric is called {name!r}{hint} See `tokbench list`.") from error
    if as_json:
        typer.echo(json.dumps(about, indent=1, ensure_ascii=False))
        return
    for line in _lines(about):
        typer.echo(line)


def _model_card(name: str, store: Path) -> str:
    from tokbench.entries import entries
    from tokbench.modelcard import model_card
    from tokbench.registry import expand

    card = expand([name])[0]
    return model_card(card.spec.name, card.licence, entries(store))


def _card(name: str) -> dict[str, Any]:
    from tokbench.registry import expand
    from tokbench.spec import jsonable
    from tokbench.weights import missing

    card = expand([name])[0]
    about: dict[str, Any] = {key: value for key, value in jsonable(card).items() if value not in (None, "", [], {})}
    about.pop("point_specs", None)
    if card.spec.modality != "video":
        about["spec"].pop("frames")
    about["operating_points"] = about.pop("points", [])
    if card.weights:
        absent = {item.file.role for item in missing(card.weights, owner=card.name)}
        for file in about["weights"]:
            file["on_this_machine"] = file["role"] not in absent
            file["sha256"] = file["sha256"] or "unknown"
    return about


def _metric(name: str) -> dict[str, Any]:
    from tokbench.registry import build_metric
    from tokbench.spec import jsonable

    about: dict[str, Any] = jsonable(build_metric(name).spec)
    return about


def _lines(value: Any, indent: int = 0) -> list[str]:
    pad = " " * indent
    out: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            out += [f"{pad}{key}:", *_lines(item, indent + 2)]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            out.append(f"{pad}{key}:")
            for entry in item:
                inner = _lines({k: v for k, v in entry.items() if v not in (None, "", [])}, indent + 4)
                out += [f"{pad}  - {inner[0].strip()}", *inner[1:]] if inner else []
        elif item not in (None, "", [], {}):
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            out.append(f"{pad}{key}: {text}")
    return out
