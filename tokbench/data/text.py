"""Text datasets: images with the words on them, in TokBench's layout, as COCO-Text JSON or as ICDAR text files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokbench.data.annotated import Listing, Picture, entries, field, images_below, read_json
from tokbench.errors import DecodeError, UsageError

SETS = ("ic13", "ic15", "tt", "textocr", "cord", "sroie", "infograph", "docvqa")
"""The text sets of TokBench, in its order."""

Words = list[dict[str, object]]


def _page(path: Path, words: Callable[[], Words], size: tuple[int, int] | None = None) -> Picture:
    """Return one image and its words.

    Args:
        path: The image.
        words: Gives the words: `text`, `box` or `polygon`, and where the dataset says so `ratio` and `ignore`.
        size: (H, W) of the image where the dataset states it.
    """
    return Picture(path, lambda: {"words": words()}, size)


# --------------------------------------------------------------------------------------------------------- TokBench


def _tokbench(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
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
        for entry in entries(file, read_json(file)):
            where = f"{file.name}: image {entry.get('file_name')!r}"
            image, listed = str(field(entry, "file_name", where)), entries(where, field(entry, "annotations", where))
            size = (int(field(entry, "height", where)), int(field(entry, "width", where)))
            words = [_tokbench_word(word, f"{where}, word {i}") for i, word in enumerate(listed)]
            yield f"{name}/{image}", _page(folder / image, _constant(words), size)


def _tokbench_word(word: Mapping[str, Any], where: str) -> dict[str, object]:
    out = {"text": field(word, "rec", where), "box": field(word, "bbox", where)}
    return out | ({"ratio": word["ratio"]} if "ratio" in word else {})


# ---------------------------------------------------------------------------------------------------------- COCO-Text


def _coco(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Read COCO-Text's `imgs` and `anns`, or COCO's `images` and `annotations` whose entries carry a text."""
    if "truth" not in options:
        raise UsageError(f"{uri} names no annotations; add ?truth=/path/to/annotations.json")
    file = Path(options["truth"]).expanduser()
    table = read_json(file)
    if not isinstance(table, Mapping):
        raise UsageError(f"{file} holds no COCO-Text annotations: its top is a {type(table).__name__}")
    images = entries(file, table.get("imgs", table.get("images")))
    words: dict[object, Words] = {}
    for i, entry in enumerate(entries(file, table.get("anns", table.get("annotations")))):
        where = f"{file.name}: annotation {i}"
        left, top, width, height = _box(field(entry, "bbox", where), where)
        text = entry.get("utf8_string", entry.get("text", entry.get("transcription")))
        legible = entry.get("legibility", "legible") == "legible" and isinstance(text, str) and text != ""
        word: dict[str, object] = {
            "text": text if isinstance(text, str) else "",
            "box": [left, top, left + width, top + height],
        }
        words.setdefault(field(entry, "image_id", where), []).append(word | ({} if legible else {"ignore": True}))
    for entry in images:
        where = f"{file.name}: image {entry.get('id')!r}"
        if "set" in options and entry.get("set") != options["set"]:
            continue
        name = str(field(entry, "file_name", where))
        size = (int(field(entry, "height", where)), int(field(entry, "width", where)))
        yield name, _page(root / name, _constant(words.get(field(entry, "id", where), [])), size)


# ---------------------------------------------------------------------------------------------------------- ICDAR


def _icdar(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Read `gt_<image>.txt` or `<image>.txt` beside the images or in the folder that `truth` names."""
    truth = Path(options["truth"]).expanduser() if "truth" in options else root
    if not truth.is_dir():
        raise UsageError(f"{uri}: truth={truth} is not a folder")
    for path in images_below(root):
        names = (truth / f"gt_{path.stem}.txt", truth / f"{path.stem}.txt")
        file = next((name for name in names if name.is_file()), None)
        if file is not None:
            yield path.relative_to(root).as_posix(), _page(path, _IcdarFile(file))


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


TEXT_LISTINGS: Mapping[str, Listing] = {
    "tokbench-text": Listing(_tokbench, "words", ("set",)),
    "coco-text": Listing(_coco, "words", ("truth", "set")),
    "icdar": Listing(_icdar, "words", ("truth",)),
}
"""Scheme of an address -> how such a dataset lists its images."""


def _constant(words: Words) -> Callable[[], Words]:
    return lambda: words


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
