"""A folder of files as a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from tokbench.data.annotations import read_side_files
from tokbench.data.extensions import EXTENSIONS, SIDE, none_found
from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import UsageError
from tokbench.spec import Modality


class FolderSource:
    """Every file of a modality below a folder; the key is the path relative to it, with forward slashes.

    Names that begin with a dot are skipped. Links are followed, except into a folder's own ancestors. A `.json` or `.txt`
    file of the same stem annotates its neighbour. `root` may also be one file.
    """

    hint = ""

    def __init__(self, uri: str, root: Path, modality: Modality) -> None:
        self.uri, self.root, self.modality = uri, root.absolute(), modality

    def __reduce__(self) -> tuple[object, ...]:
        return (FolderSource, (self.uri, self.root, self.modality))

    @cached_property
    def _listing(self) -> tuple[tuple[str, ...], frozenset[str], int]:
        if self.root.is_file():
            return (self.root.name,), frozenset(), 0
        media, side, ignored = [], set(), 0
        for key in _walk(self.root):
            extension = Path(key).suffix.lower()
            if extension in EXTENSIONS[self.modality]:
                media.append(key)
            elif extension in SIDE:
                side.add(key)
            else:
                ignored += 1
        if not media:
            raise none_found(self.uri, self.modality, ignored + len(side))
        stems = {str(Path(key).with_suffix("")) for key in media}
        used = frozenset(key for key in side if str(Path(key).with_suffix("")) in stems)
        return tuple(sorted(media)), used, ignored + len(side) - len(used)

    @property
    def ignored(self) -> int:
        """Return how many files are neither of the modality nor annotations."""
        return self._listing[2]

    def keys(self) -> tuple[str, ...]:
        """Return the relative paths, sorted."""
        return self._listing[0]

    def open(self, key: str) -> Blob:
        """Return where the file is."""
        return self._blob(key)

    def sha256(self, key: str) -> str:
        """Return the sha256 of the file's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return what the `.json` and `.txt` files of the same stem say."""
        sides = {extension: str(Path(key).with_suffix(extension)) for extension in SIDE}
        return read_side_files({ext: self._blob(side) for ext, side in sides.items() if side in self._listing[1]})

    def _blob(self, key: str) -> Blob:
        home = self.root.parent if self.root.is_file() else self.root
        return Blob(name=Path(key).name, path=str(home / key))


def _walk(root: Path, prefix: str = "", ancestors: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield the files below `root` as relative paths; a folder that is its own ancestor is not entered again."""
    try:
        status = root.stat()
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{root}: {(error.strerror or str(error)).lower()}") from error
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        key = prefix + entry.name
        if not _is_text(key):
            raise UsageError(f"{root}: the file name {entry.name!a} is not UTF-8 and cannot be a key; rename it")
        if _is_folder(entry):
            yield from _walk(root / entry.name, key + "/", ancestors | {here})
        else:
            yield key


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
