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
    suite: options.Suites = None,
    as_json: options.Json = False,
) -> None:
    """Print the boards of result stores and write leaderboard.csv and .md. Protocols are never mixed.

    With --from, the boards declared there are written, with the published numbers they name.
    """
    import json

    from tokbench.errors import StoreError
    from tokbench.leaderboard import to_csv, to_markdown
    from tokbench.store import write_text

    stores = output or ([] if declared else [Path("results")])
    for store in stores:
        if not store.is_dir():
            raise StoreError(f"{store}: no such result store; run `tokbench run -o {store}` first")
    found, results = collect(stores, declared, suite or [])
    place = to or declared or stores[0]
    files = {"leaderboard.csv": to_csv(found), "leaderboard.md": to_markdown(found)}
    if html or serve:
        from tokbench.page import to_html

        files["leaderboard.html"] = to_html(found)
    for name, text in files.items():
        write_text(place / name, text)
    if as_json:
        typer.echo(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False))
    else:
        _print([board for board in found if board.protocol])
    typer.echo(f"wrote {', '.join(str(place / name) for name in files)}", err=True)
    if serve:
        _serve(place / "leaderboard.html")


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


def _print(found: list[Board]) -> None:
    from rich.console import Console

    from tokbench.leaderboard import to_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    for board in found:
        console.print(to_table(board))
        for note in board.notes:
            typer.echo(f"  {note}", err=True)


def _serve(path: Path) -> None:
    """Serve one file on a free port of this machine until interrupted."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    body = path.read_bytes()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        typer.echo(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", err=True)
        server.serve_forever()
