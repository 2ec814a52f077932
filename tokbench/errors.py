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

from collections.abc import Iterable
from difflib import get_close_matches


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
        near = get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        super().__init__(f"unknown {kind} {name!r}{hint} See `tokbench list {kind}s`.")
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
