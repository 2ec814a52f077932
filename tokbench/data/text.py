"""Text datasets: images with the words on them, in TokBench's layout, as COCO-Text JSON or as ICDAR text files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tokbench.data.extensions import EXTENSIONS
from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import DecodeError, UsageError
from tokbench.spec import Modality

SETS = ("ic13", "ic15", "tt", "textocr", "cord", "sroie", "infograph", "docvqa")
"""The text sets of TokBench, in its order."""

Words = list[dict[str, object]]


@dataclass(frozen=True)
class Page:
    """One image and its words.

    Attributes:
        path: The image; it may be absent, which makes a failed row.
        words: Gives the words: `text`, `box` or `polygon`, and where the dataset says so `ratio` and `ignore`.
        size: (H, W) of the image where the dataset states it, else None: the file's own.
    """

    path: Path
    words: Callable[[], Words]
    size: tuple[int, int] | None = None


class TextSource:
    """Images whose words are known. Each row's annotation is `{"size": [H, W], "words": [...]}`, see `Page`.

    An image that the truth names and that is not there is a failed row. Images that the truth does not name are ignored.
    """

    hint = ""

    def __init__(self, uri: str, scheme: str, rest: str, modality: Modality) -> None:
        self.uri, self.modality, self._scheme, self._rest = uri, modality, scheme, rest
        if modality != "image":
            raise UsageError(f"{uri} holds images, not {modality}")
        place, _, query = rest.partition("?")
        options = dict(parse_qsl(query))
        known = _OPTIONS[scheme]
        for option in options:
            if option not in known:
                raise UsageError(f"{uri}: unknown option {option!r}; there is {' and '.join(known)}")
        self._options, self.root = options, Path(place).expanduser().absolute()

    def __reduce__(self) -> tuple[object, ...]:
        return (TextSource, (self.uri, self._scheme, self._rest, self.modality))

    @cached_property
    def _pages(self) -> Mapping[str, Page]:
        if not self.root.is_dir():
            raise UsageError(f"{self.uri}: {self.root} is not a folder")
        found = dict(_READERS[self._scheme](self.uri, self.root, self._options))
        if not found:
            raise UsageError(f"{self.uri} holds no image with words")
        return {key: found[key] for key in sorted(found)}

    @cached_property
    def ignored(self) -> int:
        """Return how many image files below the folder no annotation names."""
        named = {page.path for page in self._pages.values()}
        images = {path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS["image"]}
        return len(images - named)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the images, sorted."""
        return tuple(self._pages)

    def open(self, key: str) -> Blob:
        """Return where the image is."""
        path = self._pages[key].path
        return Blob(name=path.name, path=str(path))

    def sha256(self, key: str) -> str:
        """Return the sha256 of the image's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return the size the boxes belong to and the words.

        Raises:
            DecodeError: The words of this image, or its size, cannot be read.
        """
        page = self._pages[key]
        return {"size": list(page.size or _size(self.open(key))), "words": page.words()}

    def annotations_sha256(self, key: str) -> str:
        """Return the digest of the words, which belongs to the dataset's own: other words give other scores."""
        page = self._pages[key]
        text = json.dumps([page.size, page.words()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _size(blob: Blob) -> tuple[int, int]:
    from PIL import Image

    try:
        with blob.open() as handle, Image.open(handle) as image:
            return image.height, image.width
    except OSError as error:
        raise DecodeError(f"cannot be decoded: {error}") from error


# --------------------------------------------------------------------------------------------------------- TokBench


def _tokbench(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Page]]:
    """Read `annotations/text_<set>.json` and the images of `images/text_data/<set>/` (or `text_data/<set>/`)."""
    home = next((root / name for name in ("annotations", ".") if any((root / name).glob("text_*.json"))), None)
    if home is None:
        raise UsageError(f"{uri}: no annotations/text_<set>.json in {root}; TokBench has {', '.join(SETS)}")
    there = sorted(path.stem.removeprefix("text_") for path in home.glob("text_*.json"))
    for name in options["set"].split(",") if "set" in options else there:
        if name not in there:
            raise UsageError(f"{uri}: no text_{name}.json in {home}; there is {', '.join(there)}")
        places = [root / "images" / "text_data" / name, root / "text_data" / name, root / "images" / name, root / name]
        folder = next((place for place in places if place.is_dir()), places[0])
        file = home / f"text_{name}.json"
        for entry in _list(file, _json(file)):
            where = f"{file.name}: image {entry.get('file_name')!r}"
            image, listed = str(_field(entry, "file_name", where)), _list(where, _field(entry, "annotations", where))
            size = (int(_field(entry, "height", where)), int(_field(entry, "width", where)))
            words = [_tokbench_word(word, f"{where}, word {i}") for i, word in enumerate(listed)]
            yield f"{name}/{image}", Page(folder / image, _constant(words), size)


def _tokbench_word(word: Mapping[str, Any], where: str) -> dict[str, object]:
    out = {"text": _field(word, "rec", where), "box": _field(word, "bbox", where)}
    return out | ({"ratio": word["ratio"]} if "ratio" in word else {})


# ---------------------------------------------------------------------------------------------------------- COCO-Text


def _coco(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Page]]:
    """Read COCO-Text's `imgs` and `anns`, or COCO's `images` and `annotations` whose entries carry a text."""
    if "truth" not in options:
        raise UsageError(f"{uri} names no annotations; add ?truth=/path/to/annotations.json")
    file = Path(options["truth"]).expanduser()
    table = _json(file)
    if not isinstance(table, Mapping):
        raise UsageError(f"{file} holds no COCO-Text annotations: its top is a {type(table).__name__}")
    images = _list(file, table.get("imgs", table.get("images")))
    words: dict[object, Words] = {}
    for i, entry in enumerate(_list(file, table.get("anns", table.get("annotations")))):
        where = f"{file.name}: annotation {i}"
        left, top, width, height = _box(_field(entry, "bbox", where), where)
        text = entry.get("utf8_string", entry.get("text", entry.get("transcription")))
        legible = entry.get("legibility", "legible") == "legible" and isinstance(text, str) and text != ""
        word: dict[str, object] = {
            "text": text if isinstance(text, str) else "",
            "box": [left, top, left + width, top + height],
        }
        words.setdefault(_field(entry, "image_id", where), []).append(word | ({} if legible else {"ignore": True}))
    for entry in images:
        where = f"{file.name}: image {entry.get('id')!r}"
        if "set" in options and entry.get("set") != options["set"]:
            continue
        name = str(_field(entry, "file_name", where))
        size = (int(_field(entry, "height", where)), int(_field(entry, "width", where)))
        yield name, Page(root / name, _constant(words.get(_field(entry, "id", where), [])), size)


# ---------------------------------------------------------------------------------------------------------- ICDAR


def _icdar(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Page]]:
    """Read `gt_<image>.txt` or `<image>.txt` beside the images or in the folder that `truth` names."""
    truth = Path(options["truth"]).expanduser() if "truth" in options else root
    if not truth.is_dir():
        raise UsageError(f"{uri}: truth={truth} is not a folder")
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS["image"]):
        names = (truth / f"gt_{path.stem}.txt", truth / f"{path.stem}.txt")
        file = next((name for name in names if name.is_file()), None)
        if file is not None:
            yield path.relative_to(root).as_posix(), Page(path, _IcdarFile(file))


@dataclass(frozen=True)
class _IcdarFile:
    """The words of one ICDAR text file, read when asked for, so that a broken one costs its own row."""

    path: Path

    def __call__(self) -> Words:
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DecodeError(f"{self.path.name} cannot be read: {error}") from error
        lines = [line.strip() for line in text.splitlines()]
        return [_icdar_word(line, f"{self.path.name}, line {i}") for i, line in enumerate(lines, 1) if line]


def _icdar_word(line: str, where: str) -> dict[str, object]:
    """Read `x1,y1,...,x4,y4,text` (2015), `left,top,right,bottom,text` or `left top right bottom "text"` (2013)."""
    if "," in line:
        row = [part.strip() for part in line.split(",")]
    else:
        row = next(csv.reader([line], delimiter=" ", quotechar='"', skipinitialspace=True))
    count = next((i for i, part in enumerate(row) if not _is_number(part)), len(row))
    # The text may itself begin with numbers ("9,5" behind eight corners, "42" behind a box).
    corners = 8 if count >= 8 and len(row) > 8 else 4
    if count < corners or len(row) <= corners:
        raise DecodeError(f"{where}: neither 4 nor 8 numbers and a text: {line[:60]!r}")
    places = [float(part) for part in row[:corners]]
    text = line.split(",", corners)[corners].strip() if "," in line else row[corners]
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    place: dict[str, object] = {"box": places}
    if corners == 8:
        place = {"polygon": [list(pair) for pair in zip(places[::2], places[1::2], strict=True)]}
    return {"text": text, **place, **({"ignore": True} if text in {"###", "*"} else {})}


# ---------------------------------------------------------------------------------------------------------- helpers


_Reader = Callable[[str, Path, Mapping[str, str]], Iterator[tuple[str, Page]]]
_READERS: Mapping[str, _Reader] = {"tokbench-text": _tokbench, "coco-text": _coco, "icdar": _icdar}
_OPTIONS: Mapping[str, Sequence[str]] = {
    "tokbench-text": ("set",),
    "coco-text": ("truth", "set"),
    "icdar": ("truth",),
}
TEXT_SCHEMES = frozenset(_READERS)
"""Schemes of addresses that `TextSource` reads."""


def _constant(words: Words) -> Callable[[], Words]:
    return lambda: words


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def _list(where: object, value: object) -> Sequence[Mapping[str, Any]]:
    """Return a list of mappings; a mapping of them (COCO-Text's `imgs`) gives its values."""
    entries = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UsageError(f"{where}: expected a list of annotations, found {type(value).__name__}")
    return entries


def _field(entry: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in entry:
        raise UsageError(f"{where} has no {name!r}")
    return entry[name]


def _box(value: object, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        raise UsageError(f"{where}: its bbox is {value!r}, not four numbers")
    left, top, width, height = value
    return float(left), float(top), float(width), float(height)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
