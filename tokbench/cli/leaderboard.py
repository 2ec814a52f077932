"""`tokbench leaderboard`: render boards of result stores and published numbers as CSV, Markdown and one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokbench.cli import options

if TYPE_CHECKING:
    from tokbench.leaderboard import Board


def leaderboard(
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", envvar="TOKBENCH_OUTPUT", help="A result store; repeat.  [default: results]"),
    ] = None,
    declared: Annotated[
        Path | None,
        typer.Option("--from", help="Directory with boards/*.toml, reported/*.toml and results/, e.g. leaderboards."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Directory for leaderboard.*.  [default: --from, else the store]")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Also write leaderboard.html.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Write the HTML and show it on a local port.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="For --serve; 0: a free one.")] = 0,
    samples: Annotated[
        float, typer.Option("--samples", min=0, help="Megabytes of kept samples the HTML may hold; 0: none.")
    ] = 8.0,
    suite: options.Suites = None,
    as_json: options.Json = False,
) -> None:
    """Print the boards of result stores and write leaderboard.csv and .md. Protocols are never mixed.

    With --from, the boards declared there are written, with the published numbers they name.
    """
    import json

    from tokbench.errors import StoreError
    from tokbench.renderings import to_csv, to_markdown
    from tokbench.store import write_text

    stores = output or ([] if declared else [Path("results")])
    for store in stores:
        if not store.is_dir():
            raise StoreError(f"{store}: no such result store; run `tokbench run -o {store}` first")
    found, results = collect(stores, declared, suite or [])
    if not found:
        here = ", ".join(map(str, [*stores, *([declared] if declared else [])]))
        what = f"no result of suite {', '.join(suite)}" if suite else "no result"
        held = sorted({entry.suite for entry in collect(stores, declared, [])[0]}) if suite else []
        raise StoreError(f"{here}: {what}" + (f"; it holds {', '.join(held)}" if held else ""))
    place = to or declared or stores[0]
    files = {"leaderboard.csv": to_csv(found), "leaderboard.md": to_markdown(found)}
    if html or serve:
        from tokbench.page import to_html

        files["leaderboard.html"] = to_html(found, budget=int(samples * 1e6))
    for name, text in files.items():
        write_text(place / name, text)
    if as_json:
        typer.echo(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False))
    else:
        from tokbench.cli.run import print_boards

        print_boards(board for board in found if board.protocol)
    typer.echo(f"wrote {', '.join(str(place / name) for name in files)}", err=True)
    if serve:
        _serve(place / "leaderboard.html", port)


def collect(stores: list[Path], declared: Path | None, suites: list[str]) -> tuple[list[Board], list[object]]:
    """Return the boards of stores and of a declared directory, and the results on them."""
    from fnmatch import fnmatchcase

    from tokbench.entries import entries
    from tokbench.leaderboard import declared_boards, ranked_boards
    from tokbench.published import load_declared

    places = [*stores, *([declared / "results"] if declared and (declared / "results").is_dir() else [])]
    everything = [entry for place in places for entry in entries(place)]
    found = [e for e in everything if not suites or any(fnmatchcase(e.result["suite"], glob) for glob in suites)]
    boards = ranked_boards(found) if declared is None else declared_boards(load_declared(declared), found)
    if suites:
        boards = [board for board in boards if any(fnmatchcase(board.suite, glob) for glob in suites)]
    return boards, [dict(entry.result) for entry in found]


def _serve(path: Path, port: int) -> None:
    """Serve one file on this machine until interrupted."""
    from tokbench.cli.serving import PageServer
    from tokbench.errors import UsageError

    try:
        server = PageServer(path.read_bytes(), port)
    except OSError as error:
        raise UsageError(f"--port {port}: {(error.strerror or str(error)).lower()}; 0 takes a free one") from error
    with server:
        typer.echo(f"{server.url} (Ctrl-C ends it)", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("", err=True)
