"""Model files that ride inside an installed Python package: found, digested and refused without importing the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokbench.errors import MissingExtra, install_command
from tokbench.spec import WeightFile
from tokbench.weights import ALL_ROLES, file_digest, missing, resolve

from ._backbones import ABSENT, digest_of


@dataclass(frozen=True)
class Packaged:
    """A model file inside a package.

    Attributes:
        owner: The metric it belongs to, as messages and `$TOKBENCH_WEIGHTS/<owner>/` spell it.
        package: The importable name; it is only looked for, never imported.
        file: Path inside the package.
        extra: Of tokbench, which installs the package.
    """

    owner: str
    package: str
    file: str
    extra: str


def find(model: Packaged, explicit: str = "") -> Path | None:
    """Return the local file, or None. Raises UsageError where `explicit` names nothing."""
    overrides = {ALL_ROLES: Path(explicit)} if explicit else {}
    wanted = WeightFile("model", model.file, package=model.package)
    if missing([wanted], owner=model.owner, overrides=overrides):
        return None
    return resolve([wanted], owner=model.owner, offline=True, overrides=overrides)["model"]


def require(model: Packaged, explicit: str = "") -> Path:
    """Return the local file.

    Raises:
        MissingExtra: The package is not installed.
    """
    path = find(model, explicit)
    if path is None:
        raise MissingExtra(
            f"{model.owner} needs {model.file} of the package {model.package}",
            install_command(model.extra),
        )
    return path


def digest(model: Packaged, explicit: str = "") -> str:
    """Return the file's sha256, or `absent`: what a metric's protocol says of its weights."""
    return digest_of(lambda: find(model, explicit))


@lru_cache
def carried_digest(package: str, file: str) -> str:
    """Return the sha256 of the model file a package loads by itself, or `absent`: no file of the user's takes its place."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        return ABSENT
    folders = (found.submodule_search_locations or ()) if found else ()
    path = next((Path(folder) / file for folder in folders), None)
    return file_digest(path) if path and path.is_file() else ABSENT
