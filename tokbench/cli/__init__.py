"""The command line: one file a verb; progress and notices go to stderr, data to stdout."""

from __future__ import annotations

import errno
import sys

import typer

from tokbench import __version__
from tokbench.cli import check, compare, convert, leaderboard, listing, plan, run, show, submit
from tokbench.errors import ContractError, NotAvailable, StoreError, TokbenchError, UsageError

_PLACES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG
}  # fmt: skip

app = typer.Typer(
    name="tokbench",
    help="Benchmark and evaluation suite for image, video and audio tokenizers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None},
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("list")(listing.list_)
app.command("show")(show.show)
app.command("check")(check.check)
app.command("convert")(convert.convert)
app.command("compare")(compare.compare)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("submit")(submit.submit)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Benchmark and evaluation suite for image, video and audio tokenizers."""


def main() -> None:
    """Run the CLI. Exit codes: 0 done, 1 something failed, 2 wrong use or nothing can run, 130 interrupted."""
    try:
        app()
    except NotAvailable as error:
        typer.echo(f"tokbench: {error.message}\n  fix: {error.fix}", err=True)
        sys.exit(2)
    except TokbenchError as error:
        typer.echo(f"tokbench: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError | StoreError | ContractError) else 1)
    except OSError as error:
        if error.errno not in _PLACES or error.filename is None:
            raise
        typer.echo(f"tokbench: {error.filename}: {(error.strerror or str(error)).lower()}", err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # typer's own answer to Ctrl-C
            typer.echo("tokbench: interrupted; finished shards are kept, run again to go on", err=True)
        raise
