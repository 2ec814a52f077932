"""What metrics ask of any model they listen with: a name, a description, its settings, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Model(Protocol):
    """A published network, or program, behind a metric."""

    @property
    def name(self) -> str:
        """Of the metric."""
        ...

    @property
    def about(self) -> str:
        """What a reader must know of it, in a line."""
        ...

    @property
    def reference(self) -> str:
        """Paper and code."""
        ...

    @property
    def extra(self) -> str | None:
        """Of tokbench that it needs."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Return what defines its output, weights included."""
        ...

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        ...
