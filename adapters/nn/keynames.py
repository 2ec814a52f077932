"""Key layouts written once, from a module's own names to the published ones, and used in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from .checkpoint import Layout, State

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression over a module's own key and what stands in the published key instead."""


def published_name(key: str, rules: Sequence[Rule]) -> str:
    """Return the published name of a module's key: every rule applied to it once, in order."""
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def published_as(rules: Sequence[Rule]) -> Layout:
    """Return the layout that brings published keys back to the module's names.

    Keys that the module does not have keep their published name, so that an error names what stands in the file.
    """

    def layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
        own = {published_name(key, rules): key for key in wanted}
        return {own.get(key, key): value for key, value in state.items()}

    return layout
