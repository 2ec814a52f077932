"""Packages that come with an extra of tokbench: imported when they are first needed, without what they say meanwhile."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

from tokbench.errors import MissingExtra, install_command


def optional(module: str, user: str, *, package: str = "", extra: str = "audio") -> Any:
    """Import a module of a package that may not be installed.

    Its warnings at import (pyworld's of pkg_resources, say) are for its authors, so they are held back.

    Args:
        module: Importable name.
        user: What needs it, for the message.
        package: As pip spells it, where that is another name.
        extra: Of tokbench, which installs it.

    Raises:
        MissingExtra: It, or a package it imports, is not installed.
    """
    if (known := sys.modules.get(module)) is not None:
        return known
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        needed = f"{user} needs the package {package or module.partition('.')[0]}"
        raise MissingExtra(needed, install_command(extra)) from error
