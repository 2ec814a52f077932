"""One sample of a built-in set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokbench.data.types import Blob, Made


@dataclass(frozen=True)
class Entry:
    """A file of a package or a signal to be made.

    Attributes:
        key: Its name in the set.
        origin: Where it is.
        annotate: Gives its annotations.
        sha256: Gives its digest where neither the file's bytes nor the made signal are what counts.
    """

    key: str
    origin: Blob | Made
    annotate: Callable[[], Mapping[str, object]] | None = None
    sha256: Callable[[], str] | None = None
