"""Words that an annotation gives: what they say, where they stand, how large they are, and whether they can be scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokbench.errors import NotApplicable, UsageError

from ._ocr import Box, Region

OK = "ok"
NO_TEXT = "no text"
MARKED = "marked illegible"
OFF_IMAGE = "box off the image"
EMPTY = "empty crop"
TOO_SMALL = "too small"
TOO_LARGE = "too large"
OUT_OF_VOCABULARY = "out of vocabulary"
NOT_LEGIBLE = "not legible on the reference"
"""Status of a word that the recogniser does not read on the reference, or not surely, where a metric asks for that."""

PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "256": (0.02, 0.03, 0.04, 1.0),
    "512": (0.01, 0.02, 0.03, 1.0),
    "1024": (0.005, 0.01, 0.02, 1.0),
    "video-256": (0.01, 0.02, 0.03, 1.0),
    "video-480": (0.005, 0.01, 0.02, 1.0),
}
"""TokBench's edges by resolution: small, medium and large words."""


@dataclass(frozen=True)
class Word:
    """One word of the ground truth.

    Attributes:
        text: What it says.
        box: Left, top, right, bottom: whole pixels of the image, cut towards zero as TokBench does; may lie off the image.
        ratio: Length of the box per character over the long side of the image.
        frame: Of a video: index of the frame in the file, from zero.
        marked: The annotation says that nobody can read it.
    """

    text: str
    box: Box
    ratio: float | None
    frame: int | None = None
    marked: bool = False


@dataclass(frozen=True)
class Bins:
    """Half-open ranges of the ratio, [edge, next edge), with a name each."""

    edges: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return `small`, `medium`, `large` for three bins, else `bin1`, `bin2` and so on."""
        count = len(self.edges) - 1
        return ("small", "medium", "large") if count == 3 else tuple(f"bin{i + 1}" for i in range(count))

    def find(self, ratio: float) -> str | None:
        """Return the name of the bin that holds a ratio, or None."""
        for name, (low, high) in zip(self.names, pairwise(self.edges), strict=True):
            if low <= ratio < high:
                return name
        return None


def parse_bins(metric: str, text: str | float) -> Bins:
    """Read `256`, `512`, `1024`, `video-256`, `video-480`, or free edges such as `0.01/0.02/0.05/1`.

    Raises:
        UsageError: Neither; or edges that do not rise.
    """
    if str(text) in PUBLISHED:
        return Bins(PUBLISHED[str(text)])
    try:
        edges = tuple(float(part) for part in str(text).split("/"))
    except ValueError:
        edges = ()
    if len(edges) < 2 or any(not low < high for low, high in pairwise(edges)) or edges[0] < 0:
        raise UsageError(
            f"{metric}: bins={text} is neither one of {', '.join(PUBLISHED)} nor rising edges such as 0.01/0.02/0.05/1"
        )
    return Bins(edges)


def words_of(metric: str, annotation: Mapping[str, object], height: int, width: int) -> list[Word]:
    """Read the words of one image or video from its annotation.

    The annotation holds `size`, the (H, W) its boxes belong to, and `words`: mappings with `text`, `box` (left, top, right,
    bottom) or `polygon`, and where they apply `ratio`, `frame` and `ignore`. Other spellings are translated by the loaders.

    Args:
        metric: For messages.
        annotation: Of the row.
        height: Of the images that are compared.
        width: Of the images that are compared.

    Raises:
        NotApplicable: There is no annotation of words, or it belongs to another size than the images that are compared.
        UsageError: It is not of that form.
    """
    if "words" not in annotation:
        raise NotApplicable(
            f"{metric} needs words with boxes and this dataset carries none; use a text dataset (`tokbench:`, "
            "`coco-text:`, `icdar:`, `sample:words`) or a metric whose name ends in _self"
        )
    listed, size = annotation["words"], annotation.get("size")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise UsageError(f"{metric}: the annotation's words are {type(listed).__name__}, not a list")
    given = _numbers(metric, "size", size, 2) if listed else (height, width)
    if tuple(given) != (height, width):
        raise NotApplicable(
            f"the boxes belong to an image of {given[0]:g}x{given[1]:g} (HxW), but {height}x{width} are compared: choose "
            "the preset tokbench-pad or native, which compare at the file's own size"
        )
    return [_word(metric, index, entry, height, width) for index, entry in enumerate(listed)]


def _word(metric: str, index: int, entry: object, height: int, width: int) -> Word:
    where = f"word {index}"
    if not isinstance(entry, Mapping):
        raise UsageError(f"{metric}: {where} of the annotation is {type(entry).__name__}, not a mapping")
    text = entry.get("text")
    if not isinstance(text, str):
        raise UsageError(f"{metric}: {where} of the annotation has no text")
    left, top, right, bottom = (int(value) for value in _corners(metric, where, entry))
    ratio, frame = entry.get("ratio"), entry.get("frame")
    if ratio is None:
        length = max(right - left, bottom - top)
        ratio = length / len(text) / max(height, width) if text else None
    elif isinstance(ratio, bool) or not isinstance(ratio, int | float) or not math.isfinite(ratio):
        raise UsageError(f"{metric}: {where} of the annotation has the ratio {ratio!r}")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int)):
        raise UsageError(f"{metric}: {where} of the annotation has the frame {frame!r}")
    return Word(text, (left, top, right, bottom), ratio, frame, bool(entry.get("ignore", False)))


def _corners(metric: str, where: str, entry: Mapping[str, object]) -> Sequence[float]:
    if "box" in entry:
        return _numbers(metric, f"{where}'s box", entry["box"], 4)
    polygon = entry.get("polygon")
    if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) < 2:
        raise UsageError(f"{metric}: {where} of the annotation has neither a box nor a polygon")
    points = [_numbers(metric, f"{where}'s polygon", point, 2) for point in polygon]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _numbers(metric: str, what: str, value: object, count: int) -> Sequence[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise UsageError(f"{metric}: {what} in the annotation must be {count} numbers, got {value!r}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UsageError(f"{metric}: {what} in the annotation must be {count} numbers, got {value!r}")
    return value


def status(word: Word, bins: Bins, alphabet: frozenset[str], height: int, width: int) -> tuple[str, Region | None]:
    """Tell whether a word can be scored, and where to read it: the part of its box inside the image.

    The first of these that holds: no text, marked illegible, empty crop, box off the image, too small or too large for the
    bins, out of the recogniser's vocabulary, ok.
    """
    left, top, right, bottom = word.box
    if not word.text or word.ratio is None:
        return NO_TEXT, None
    if word.marked:
        return MARKED, None
    if left >= right or top >= bottom:
        return EMPTY, None
    inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return OFF_IMAGE, None
    if word.ratio < bins.edges[0]:
        return TOO_SMALL, None
    if bins.find(word.ratio) is None:
        return TOO_LARGE, None
    if not alphabet.issuperset(word.text):
        return OUT_OF_VOCABULARY, None
    return OK, Region(inside)
