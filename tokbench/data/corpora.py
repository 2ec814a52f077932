"""Folders of well-known sound corpora, read in their published layout so that text, speaker and labels come along."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tokbench.data.folder import FolderSource
from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import UsageError
from tokbench.spec import Modality

Annotations = Mapping[str, object]


@dataclass(frozen=True)
class Layout:
    """How one corpus names its files.

    Attributes:
        pattern: What a sound file's path below the root ends in, from the start of a name.
        example: Such a path, for messages.
        open: Reads what annotates the files of a root; gives a function from key to annotations, or None for a file that
            is no part of the corpus, and a sentence on what is missing here.
    """

    pattern: re.Pattern[str]
    example: str
    open: Callable[[Path, tuple[str, ...]], tuple[Callable[[str], Annotations | None], str]]


class CorpusSource:
    """The sound files of one corpus below a folder; the key is the path relative to it, with forward slashes."""

    def __init__(self, uri: str, scheme: str, root: Path, modality: Modality) -> None:
        if modality != "audio":
            raise UsageError(f"{uri} holds sound, not {modality}")
        if not root.is_dir():
            raise UsageError(f"{uri} is not there, or is not a folder")
        self.uri, self.scheme, self.root, self.modality = uri, scheme, root.absolute(), modality

    def __reduce__(self) -> tuple[object, ...]:
        return (CorpusSource, (self.uri, self.scheme, self.root, self.modality))

    @cached_property
    def _folder(self) -> FolderSource:
        return FolderSource(self.uri, self.root, self.modality)

    @cached_property
    def _opened(self) -> tuple[tuple[str, ...], Callable[[str], Annotations | None], str]:
        layout = LAYOUTS[self.scheme]
        named = tuple(key for key in self._folder.keys() if layout.pattern.search(key))  # noqa: SIM118
        about, hint = layout.open(self.root, named)
        keys = tuple(key for key in named if about(key) is not None)
        if not keys:
            raise UsageError(f"{self.uri} holds no file named like {layout.example}; is it the folder of the corpus?")
        return keys, about, hint

    @property
    def ignored(self) -> int:
        """Return how many sound files below the root are no part of the corpus; texts and tables are not counted."""
        return len(self._folder.keys()) - len(self._opened[0])

    @property
    def hint(self) -> str:
        """Return what of the corpus is missing here, or an empty string."""
        return self._opened[2]

    def keys(self) -> tuple[str, ...]:
        """Return the relative paths, sorted."""
        return self._opened[0]

    def open(self, key: str) -> Blob:
        """Return where the file is."""
        return Blob(name=PurePosixPath(key).name, path=str(self.root / key))

    def sha256(self, key: str) -> str:
        """Return the sha256 of the file's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Annotations:
        """Return what the corpus says of the file."""
        return self._opened[1](key) or {}


def _librispeech(root: Path, keys: tuple[str, ...]) -> tuple[Callable[[str], Annotations], str]:
    """Text from `<speaker>-<chapter>.trans.txt`, sex from SPEAKERS.TXT beside or above the root, where it is."""
    texts: dict[str, str] = {}
    for chapter in sorted({PurePosixPath(key).parent for key in keys}):
        for line in _lines(root.joinpath(chapter, f"{'-'.join(chapter.parts[-2:])}.trans.txt")):
            name, _, text = line.partition(" ")
            texts[name] = text.strip()
    sexes = _sexes(root)

    def about(key: str) -> Annotations:
        name = PurePosixPath(key).stem
        speaker, chapter = name.split("-")[:2]
        found: dict[str, object] = {"speaker": speaker, "chapter": chapter}
        if name in texts:
            found["text"] = texts[name]
        if speaker in sexes:
            found["sex"] = sexes[speaker]
        return found

    lacking = sum(PurePosixPath(key).stem not in texts for key in keys)
    return about, f"{lacking} of {len(keys)} recordings have no line in a .trans.txt file" if lacking else ""


def _libritts(root: Path, keys: tuple[str, ...]) -> tuple[Callable[[str], Annotations], str]:
    """Text from `.normalized.txt`, the book's spelling from `.original.txt`."""
    sexes = _sexes(root)

    def about(key: str) -> Annotations:
        path = root / key
        speaker, chapter = path.stem.split("_")[:2]
        found: dict[str, object] = {"speaker": speaker, "chapter": chapter}
        for name, suffix in (("text", ".normalized.txt"), ("original", ".original.txt")):
            if lines := _lines(path.with_suffix(suffix)):
                found[name] = " ".join(lines)
        if speaker in sexes:
            found["sex"] = sexes[speaker]
        return found

    lacking = sum(not (root / key).with_suffix(".normalized.txt").is_file() for key in keys)
    return about, f"{lacking} of {len(keys)} recordings have no .normalized.txt file" if lacking else ""


def _musdb(root: Path, keys: tuple[str, ...]) -> tuple[Callable[[str], Annotations], str]:
    """The title from the folder (wav) or file (stem.mp4), whose first track is the mixture."""
    del root, keys

    def about(key: str) -> Annotations:
        path = PurePosixPath(key)
        title = path.name.removesuffix(".stem.mp4") if path.name.endswith(".stem.mp4") else path.parent.name
        artist, dash, song = title.partition(" - ")
        return {"artist": artist, "title": song} if dash else {"title": title}

    return about, ""


def _audioset(root: Path, keys: tuple[str, ...]) -> tuple[Callable[[str], Annotations | None], str]:
    """Labels from the `*_segments.csv` in the root or beside it, their names from class_labels_indices.csv, where it is."""
    tables = sorted([*root.glob("*_segments.csv"), *root.parent.glob("*_segments.csv")])
    if len(tables) > 1:
        named = [table for table in tables if table.stem == root.name]
        tables = named or tables
    if len(tables) != 1:
        seen = ", ".join(table.name for table in tables) or "none"
        raise UsageError(
            f"{root} needs one AudioSet segments file in it or beside it, e.g. eval_segments.csv; found {seen}"
        )
    segments: dict[str, dict[str, object]] = {}
    for row in csv.reader(_lines(tables[0]), skipinitialspace=True):
        if len(row) == 4 and not row[0].startswith("#"):
            segments[row[0]] = {"start": float(row[1]), "end": float(row[2]), "labels": row[3].split(",")}
    names = _class_names([root, root.parent])

    def about(key: str) -> Annotations | None:
        video = _video(PurePosixPath(key).stem, segments)
        if video is None:
            return None
        found = {"video": video, **segments[video]}
        if names:
            found["names"] = [names.get(label, label) for label in segments[video]["labels"]]  # type: ignore[attr-defined]
        return found

    there = {_video(PurePosixPath(key).stem, segments) for key in keys} - {None}
    lacking = len(segments) - len(there)
    return about, f"{lacking} of the {len(segments)} segments of {tables[0].name} have no file here" if lacking else ""


def _video(stem: str, known: Mapping[str, object]) -> str | None:
    """Find the YouTube id, 11 characters, at the start of a name; downloaders put a Y before it or times behind."""
    return next((name for name in (stem[:11], stem[1:12]) if name in known), None)


def _class_names(places: Iterable[Path]) -> dict[str, str]:
    for place in places:
        if lines := _lines(place / "class_labels_indices.csv"):
            return {row["mid"]: row["display_name"] for row in csv.DictReader(lines)}
    return {}


def _sexes(root: Path) -> dict[str, str]:
    """Read `id | sex | subset | minutes | name` lines: LibriSpeech's SPEAKERS.TXT, LibriTTS's speakers.tsv has tabs."""
    for place in (root, root.parent):
        for name, sign in (("SPEAKERS.TXT", "|"), ("SPEAKERS.txt", "|"), ("speakers.tsv", "\t")):
            rows = [[cell.strip() for cell in line.split(sign)] for line in _lines(place / name)]
            found = {row[0]: row[1] for row in rows if len(row) > 2 and row[0].isdigit() and row[1] in {"F", "M"}}
            if found:
                return found
    return {}


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty; none where there is no such file.

    Raises:
        UsageError: It is there and cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


LAYOUTS: Mapping[str, Layout] = {
    "librispeech": Layout(
        re.compile(r"(?:^|/)(\d+)/(\d+)/\1-\2-\d+\.(?:flac|wav)$"), "1089/134686/1089-134686-0000.flac", _librispeech
    ),
    "libritts": Layout(
        re.compile(r"(?:^|/)(\d+)/(\d+)/\1_\2_\d+_\d+\.(?:wav|flac)$"), "1089/134686/1089_134686_000001_000001.wav", _libritts
    ),
    "musdb": Layout(re.compile(r"(?:[^/]+/mixture\.wav|[^/]+\.stem\.mp4)$"), "Artist - Song/mixture.wav", _musdb),
    "audioset": Layout(re.compile(r"."), "<YouTube id>.wav", _audioset),
}  # fmt: skip
"""Scheme -> layout."""
