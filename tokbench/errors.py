"""Every error a user can cause, as one tree; each message says what was wrong and what to do.

TokbenchError
├── UsageError            a wrong option, suite or protocol                          (CLI exit 2)
│   ├── UnknownName       a name that is not registered; carries the nearest ones
│   └── CardError         a catalog, card or suite file that does not validate
├── NotAvailable          something optional is absent: a state in the result, never a crash
│   ├── MissingExtra      a library of an extra is not installed
│   ├── WeightsAbsent     a weight file is not on this machine
│   ├── WeightsRefused    a weight file that is there but is another one, or would have to be unpickled (in weights.py)
│   └── DataAbsent        a dataset or a package that carries samples is not on this machine
├── NotApplicable         this tokenizer or metric cannot do that by its nature (modality, size, no codebook)
├── Undefined             a metric has no value for a row; the message says why
├── DecodeError           one input file that cannot be read; becomes a failed row
├── ContractError         a tokenizer broke a rule of `tokbench.contract`
└── StoreError            a result store that is damaged or of another version
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname


class TokbenchError(Exception):
    """Base of all errors tokbench raises on purpose."""


class UsageError(TokbenchError):
    """A wrong option, suite or protocol."""


class UnknownName(UsageError):
    """A name that is not registered.

    >>> str(UnknownName("tokenizer", "jpg", ["jpeg", "webp"]))
    "unknown tokenizer 'jpg'; did you mean jpeg? See `tokbench list tokenizers`."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(dict.fromkeys(known))
        near = nearest(name, known)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        if kind in {"tokenizer", "suite", "metric"}:
            hint += f" See `tokbench list {kind}s`."
        elif not near and known:
            hint = f"; there is {', '.join(known[:10])}."
        super().__init__(f"unknown {kind} {name!r}{hint}")
        self.kind, self.name, self.near = kind, name, tuple(near)

    def __reduce__(self) -> tuple[object, ...]:
        return (UnknownName, (self.kind, self.name, self.near))


class CardError(UsageError):
    """A catalog, card or suite file that does not validate."""


class NotAvailable(TokbenchError):
    """Something optional is absent. `fix` is the command or step that provides it."""

    state = "unavailable"

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message, fix)
        self.message, self.fix = message, fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class MissingExtra(NotAvailable):
    """A library of an extra is not installed."""

    state = "extra absent"


class WeightsAbsent(NotAvailable):
    """A weight file is not on this machine."""

    state = "weights absent"


class DataAbsent(NotAvailable):
    """A dataset, or a package that carries samples, is not on this machine."""

    state = "data absent"


class NotApplicable(TokbenchError):
    """This tokenizer or metric cannot do that by its nature."""


class Undefined(TokbenchError):
    """A metric has no value for this row; the message says why, and stands in the row."""


class DecodeError(TokbenchError):
    """One input file that cannot be read; becomes a failed row."""


class ContractError(TokbenchError):
    """A tokenizer broke a rule of `tokbench.contract`."""


class StoreError(TokbenchError):
    """A result store that is damaged or of another version."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of `known` that are spelled much like `name`, the nearest first, none twice."""
    return get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)


def install_command(extra: str) -> str:
    """Return the command that adds an extra of tokbench to the environment this process runs in.

    From a clone whose `.venv` uv made (as README does) that is `uv sync`; in a clone that was installed another way, and
    where tokbench was installed from a package, it is pip. Names no folder, because results hold it.
    """
    root = _clone()
    if root is None:
        return f'pip install "tokbench[{extra}]"'
    if Path(sys.prefix) == root / ".venv" and (root / "uv.lock").is_file():
        uv = ".uv/bin/uv" if shutil.which("uv") is None and (root / ".uv" / "bin" / "uv").is_file() else "uv"
        return f"{uv} sync --inexact --extra {extra}"
    pip = "pip" if find_spec("pip") is not None else "uv pip"
    return f'{pip} install -e ".[{extra}]"'


def _clone() -> Path | None:
    """Return the folder tokbench was installed from in editable mode, or None."""
    try:
        about = json.loads(distribution("tokbench").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    if not about.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlparse(about["url"]).path))
