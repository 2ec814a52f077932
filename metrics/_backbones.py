"""Where the weights of feature networks are: a path, `$TOKBENCH_WEIGHTS`, the torch hub cache, an earlier download."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokbench.errors import NotAvailable, WeightsAbsent
from tokbench.spec import WeightFile
from tokbench.weights import ALL_ROLES, WeightsRefused, file_digest, missing, resolve

ABSENT = "absent"


@dataclass(frozen=True)
class Backbone:
    """A published weight file.

    Attributes:
        owner: What it is for, as messages and `$TOKBENCH_WEIGHTS/<owner>/` spell it.
        files: Its names in torch's hub cache; the first is what the address serves.
        url: Its address.
        sha256: The first hex digits of its sha256: as much of it as its publishers state, in the file's name.
        kept: Gives the folder in which its own library keeps it; None: torch's hub cache.
    """

    owner: str
    files: tuple[str, ...]
    url: str
    sha256: str
    kept: Callable[[], Path] | None = None


def find(backbone: Backbone, explicit: str = "") -> Path | None:
    """Return the local file, or None; uses no network.

    Raises:
        UsageError: `explicit` or `TOKBENCH_WEIGHTS` names nothing.
        WeightsRefused: The file's sha256 does not begin as the published one does. A file named by `explicit` may be any.
    """
    if explicit:
        return resolve([_file(backbone)], owner=backbone.owner, offline=True, overrides={ALL_ROLES: Path(explicit)})[
            "model"
        ]
    for name in backbone.files:
        if not missing([_file(backbone, name)], owner=backbone.owner):
            return _checked(backbone, resolve([_file(backbone, name)], owner=backbone.owner, offline=True)["model"])
    for name in backbone.files:
        path = _cache(backbone) / name
        if path.is_file():
            return _checked(backbone, path)
    return None


def require(backbone: Backbone, explicit: str = "") -> Path:
    """Return the local file.

    Raises:
        WeightsAbsent: It is nowhere; `fix` says where to put it.
    """
    path = find(backbone, explicit)
    if path is None:
        name = backbone.files[0]
        raise WeightsAbsent(
            f"{backbone.owner} needs {name}",
            f"download {backbone.url} to {_cache(backbone) / name} or to $TOKBENCH_WEIGHTS/{name}, "
            f"or name it with the metric's option: weights=/path/to/{name}",
        )
    return path


def fetch(backbone: Backbone, explicit: str, offline: bool) -> None:
    """Download the file where it is absent and may be had; without it the metric's cells say what is missing."""
    if not offline and not explicit and find(backbone) is None:
        _download(backbone)


@lru_cache
def _download(backbone: Backbone) -> None:
    # Once a process: where there is no network, every preset would wait for it again.
    with suppress(WeightsAbsent):
        _checked(backbone, resolve([_file(backbone)], owner=backbone.owner, offline=False)["model"])


def digest(backbone: Backbone, explicit: str = "") -> str:
    """Return the sha256 of the file that will be used, or `absent`: what a metric's protocol says of its weights."""
    return digest_of(lambda: find(backbone, explicit))


def digest_of(find_it: Callable[[], Path | None]) -> str:
    """Return the sha256 of the file that `find_it` gives, or `absent` where it gives none or one that is refused."""
    try:
        path = find_it()
    except NotAvailable:
        return ABSENT
    return ABSENT if path is None else file_digest(path)


def _file(backbone: Backbone, name: str = "") -> WeightFile:
    return WeightFile("model", name or backbone.files[0], url=backbone.url)


def _checked(backbone: Backbone, path: Path) -> Path:
    actual = file_digest(path)
    if not actual.startswith(backbone.sha256):
        raise WeightsRefused(
            f"{path} has sha256 {actual[:16]}…, the published file's begins with {backbone.sha256}",
            f"remove {path} and fetch {backbone.url}; to use other weights on purpose, name them with ?weights=",
        )
    return path


def _cache(backbone: Backbone) -> Path:
    return (backbone.kept or _hub_cache)()


def _hub_cache() -> Path:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"
