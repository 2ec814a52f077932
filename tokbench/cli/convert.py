"""`tokbench convert FILE`: a checkpoint that has to be unpickled, to safetensors, after the user agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="The checkpoint: .pt, .pth, .ckpt, .bin, .th, .pkl or .jit.")],
    target: Annotated[
        Path | None, typer.Argument(help="The file to write.  [default: beside it, .safetensors]")
    ] = None,
    inside: Annotated[
        str, typer.Option("--inside", help="Keys that lead to the weights, e.g. state_dict or model/ema.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Run the file's code without asking.")] = False,
) -> None:
    """Convert a checkpoint to safetensors. Reading it runs whatever code is in it, with your rights: trusted files only."""
    from tokbench.convert import check_places
    from tokbench.convert import convert as convert_file

    place = target or source.with_suffix(".safetensors")
    check_places(source, place)
    if not yes:
        warning = f"Reading {source.name} runs the code inside it, in a process of its own but with your rights. Go on?"
        typer.confirm(warning, abort=True)
    count = convert_file(source, place, inside)
    typer.echo(f"wrote {count} tensors to {place}")
