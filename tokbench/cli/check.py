"""`tokbench check NAME`: run the contract and print one line a check."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tokbench.cli import options


def check(
    tokenizers: Annotated[list[str], typer.Argument(help="Names, globs or file.py:Class.")],
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    untrained: Annotated[
        bool,
        typer.Option(help="The weights are random: skip what only trained ones can pass (range, gain, delay)."),
    ] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Check that tokenizers obey the contract. Exit code 1 when a check fails, 2 when weights or a library are absent."""
    from pathlib import Path

    from tokbench import contract
    from tokbench.device import choose_device, move, pin_numerics
    from tokbench.errors import NotAvailable
    from tokbench.reconstruct import Engine
    from tokbench.registry import build_tokenizer, expand
    from tokbench.session import find_weights

    engine = Engine(choose_device(device), dtype)
    pin_numerics()
    failed = absent = False
    reports = {}
    for card in expand(tokenizers):
        name = card.spec.name
        try:
            weights, _, missing = find_weights(card, offline)
            if missing is not None:
                typer.echo(f"{name}: {missing.state}: {missing.reason}\n  fix: {missing.fix}", err=True)
                absent = True
                continue
            tokenizer = build_tokenizer(card, {role: Path(path) for role, path in weights.items()})
        except NotAvailable as error:
            typer.echo(f"{name}: {error.state}: {error.message}\n  fix: {error.fix}", err=True)
            absent = True
            continue
        move(tokenizer, engine.device, engine.dtype)
        checks = contract.check(tokenizer, engine, trained=not untrained)
        failed |= not contract.passed(checks)
        reports[name] = [asdict(item) for item in checks]
        if not as_json:
            for item in checks:
                typer.echo(f"{name}  {item.verdict:4}  {item.name}" + (f"  {item.detail}" if item.detail else ""))
    if as_json:
        typer.echo(json.dumps(reports, indent=1, ensure_ascii=False))
    if failed or absent:
        raise typer.Exit(1 if failed else 2)
