"""Tar shards in the webdataset layout as a dataset, read at random without unpacking."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tokbench.data.annotations import read_side_files
from tokbench.data.extensions import EXTENSIONS, SIDE, none_found
from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import DecodeError, UsageError
from tokbench.spec import Modality

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class _Index:
    media: Mapping[str, Blob]
    sides: Mapping[str, Mapping[str, Blob]]
    damaged: Mapping[str, str]
    ignored: int


class ShardSource:
    """The media files inside tar shards; the key is `<shard stem>/<member name>`.

    As in webdataset, the files of one sample share the name up to the first dot of the base name; what follows is the
    type. A member whose whole type is not an extension of the modality (`0001.seg.png`) is ignored; `.json` and `.txt` members
    annotate their sample. Headers are read once; nothing is ever unpacked to disk, so member names are only labels. A
    shard that ends in the middle of its headers adds a key of its own, which is a failed row.
    """

    hint = ""

    def __init__(self, uri: str, pattern: str, modality: Modality) -> None:
        self.uri, self.pattern, self.modality = uri, pattern, modality

    def __reduce__(self) -> tuple[object, ...]:
        return (ShardSource, (self.uri, self.pattern, self.modality))

    @cached_property
    def _index(self) -> _Index:
        media: dict[str, Blob] = {}
        sides: dict[str, dict[str, Blob]] = {}
        damaged: dict[str, str] = {}
        ignored = 0
        for label, path in _labels(expand(self.pattern)).items():
            for member in _members(path):
                key = f"{label}/{member.name}"
                if member.damage:
                    damaged[key] = member.damage
                    continue
                sample, extension = _split(key)
                blob = Blob(PurePosixPath(key).name, str(path), member.offset, member.size)
                if extension in EXTENSIONS[self.modality]:
                    if key in media:
                        raise UsageError(f"{path} holds two members named {member.name!r}; keys must be unique")
                    media[key] = blob
                elif extension in SIDE:
                    sides.setdefault(sample, {})[extension] = blob
                else:
                    ignored += 1
        used = {_split(key)[0] for key in media}
        ignored += sum(len(blobs) for sample, blobs in sides.items() if sample not in used)
        if not media and not damaged:
            raise none_found(self.uri, self.modality, ignored)
        return _Index(media, sides, damaged, ignored)

    @property
    def ignored(self) -> int:
        """Return how many members are neither of the modality nor annotations."""
        return self._index.ignored

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all shards, sorted."""
        return tuple(sorted((*self._index.media, *self._index.damaged)))

    def open(self, key: str) -> Blob:
        """Return the span of the shard that holds the member."""
        if key in self._index.damaged:
            raise DecodeError(self._index.damaged[key])
        return self._index.media[key]

    def sha256(self, key: str) -> str:
        """Return the sha256 of the member's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return what the `.json` and `.txt` members of the sample say."""
        return read_side_files(self._index.sides.get(_split(key)[0], {}))


def expand(pattern: str) -> tuple[Path, ...]:
    """Expand braces (`{000000..000012}`, `{a,b}`) and wildcards into paths, sorted.

    Raises:
        UsageError: A named shard does not exist, or a wildcard matches nothing.
    """
    found: dict[Path, None] = {}
    for name in _expand_braces(pattern):
        wild = glob.has_magic(name) and not Path(name).exists()
        matches = sorted(glob.glob(name, recursive=True)) if wild else [name]  # noqa: PTH207 - may be absolute
        if not matches or not all(Path(match).is_file() for match in matches):
            raise UsageError(f"no shard at {name}")
        found.update(dict.fromkeys(Path(match).absolute() for match in matches))
    return tuple(sorted(found))


def _expand_braces(pattern: str) -> Iterator[str]:
    hit = _BRACES.search(pattern)
    if hit is None:
        yield pattern
        return
    span = _RANGE.fullmatch(hit[1])
    if span is None:
        choices = hit[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise UsageError(f"{pattern}: the range {hit[0]} is empty")
        choices = [str(n).zfill(len(span[1])) for n in range(first, last + 1)]
    for choice in choices:
        yield from _expand_braces(pattern[: hit.start()] + choice + pattern[hit.end() :])


def _labels(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Label each shard by its stem, or by its path below their common folder when stems repeat."""
    stems = Counter(path.stem for path in paths)
    if max(stems.values()) == 1:
        return {path.stem: path for path in paths}
    common = Path(os.path.commonpath([str(path.parent) for path in paths]))
    labels = {path.relative_to(common).with_suffix("").as_posix(): path for path in paths}
    if len(labels) < len(paths):
        raise UsageError(f"two shards of {common} differ in their extension only; keys must be unique")
    return labels


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int = 0
    size: int = 0
    damage: str = ""


def _members(path: Path) -> Iterator[_Member]:
    """Yield the regular files of a tar; where its headers break off, one last member says so."""
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below
    except (tarfile.TarError, OSError) as error:
        kind = (
            "compressed: decompress it, a shard is read at random"
            if _is_compressed(path)
            else f"not a tar file ({error})"
        )
        raise UsageError(f"{path} is {kind}") from error
    seen: dict[str, tuple[int, int]] = {}
    broken = False
    with archive:
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, ValueError):
                broken = True
                break
            if member is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            if member.isreg():
                seen[member.name] = (member.offset_data, member.size)
            span = seen.get(member.linkname if member.islnk() else member.name)
            if span is not None and not member.issparse() and not PurePosixPath(member.name).name.startswith("."):
                yield _Member(_clean(member.name), *span)
        end = archive.offset
    broken = broken or not _ends_well(path, end)
    if broken and end <= path.stat().st_size:
        yield _Member(
            f"damaged-at-{end}", damage=f"the shard is damaged at byte {end}; members behind it cannot be listed"
        )


def _ends_well(path: Path, offset: int) -> bool:
    """Tell whether a tar ends at `offset`, with its zero block or with the file."""
    with path.open("rb") as handle:
        handle.seek(offset)
        return not handle.read(512).strip(b"\0")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _clean(name: str) -> str:
    """Return a member's name as a relative label with forward slashes and without `.` or `..`."""
    return "/".join(part for part in name.encode("utf-8", "replace").decode().split("/") if part not in ("", ".", ".."))


def _split(key: str) -> tuple[str, str]:
    """Split a key into its sample (up to the first dot of the base name) and its lower-case type with the dot."""
    folder, _, base = key.rpartition("/")
    stem, dot, rest = base.partition(".")
    return f"{folder}/{stem}", (dot + rest).lower()
