"""Built-in images: the colour photographs of scikit-image's wheel and three rendered pages of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tokbench.data.samples.entry import Entry
from tokbench.data.samples.packages import PHOTOS, photo
from tokbench.data.types import Made, Raw

if TYPE_CHECKING:
    from PIL import ImageFont

_SIDE = 512
_MARGIN = 16

# Lewis Carroll, Through the Looking-Glass (1871), public domain.
_TEXT = (
    "The time has come, the Walrus said, to talk of many things: of shoes and ships and sealing-wax, of cabbages and "
    "kings, and why the sea is boiling hot, and whether pigs have wings. But wait a bit, the Oysters cried, before we "
    "have our chat; for some of us are out of breath, and all of us are fat! No hurry! said the Carpenter. They thanked "
    "him much for that. A loaf of bread, the Walrus said, is what we chiefly need: pepper and vinegar besides are very "
    "good indeed. Now if you're ready, Oysters dear, we can begin to feed."
)
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Line:
    text: str
    box: tuple[int, int, int, int]
    size: int


@dataclass(frozen=True)
class _Page:
    sizes: tuple[int, ...]
    ink: _Colour
    paper: _Colour


_PAGES: Mapping[int, _Page] = {
    1: _Page((40, 32, 28, 24, 20, 18, 16, 14, 12, 11, 10), (0, 0, 0), (255, 255, 255)),
    2: _Page((22,), (32, 36, 64), (244, 236, 216)),
    3: _Page((14,), (230, 230, 230), (18, 24, 32)),
}


def image_entries() -> list[Entry]:
    """Return nine photographs and three pages of 512x512 pixels."""
    photos = [Entry(f"photo/{name}", photo(name)) for name in PHOTOS]
    pages = [
        Entry(f"text/page-{n}", Made(partial(make_page, n)), annotate=partial(page_annotations, n)) for n in _PAGES
    ]
    return photos + pages


def make_page(number: int) -> Raw:
    """Render a page: (512, 512, 3) uint8. The glyphs are those of Pillow's built-in font and of its FreeType."""
    from PIL import Image, ImageDraw

    page = _PAGES[number]
    image = Image.new("RGB", (_SIDE, _SIDE), page.paper)
    draw = ImageDraw.Draw(image)
    for line in _layout(page):
        draw.text(line.box[:2], line.text, fill=page.ink, font=_font(line.size), anchor="lt")
    return Raw(np.asarray(image))


def page_annotations(number: int) -> Mapping[str, object]:
    """Return the page's size (H, W) and its lines: text and box (left, top, right, bottom) in pixels of the page."""
    lines = [{"text": line.text, "box": line.box} for line in _layout(_PAGES[number])]
    return {"size": (_SIDE, _SIDE), "lines": lines}


def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font


def _layout(page: _Page) -> Sequence[_Line]:
    """Fill the page with lines, sizes taken in turn, the text starting again where it ends."""
    words = _TEXT.split()
    lines: list[_Line] = []
    top, at = _MARGIN, 0
    while True:
        size = page.sizes[len(lines) % len(page.sizes)]
        font = _font(size)
        taken = 1
        while font.getlength(" ".join(_words(words, at, taken + 1))) <= _SIDE - 2 * _MARGIN:
            taken += 1
        text = " ".join(_words(words, at, taken))
        left, _, right, bottom = font.getbbox(text, anchor="lt")
        if top + bottom > _SIDE - _MARGIN:
            return lines
        lines.append(_Line(text, (_MARGIN, top, _MARGIN + int(right - left), top + int(bottom)), size))
        top, at = top + size * 3 // 2, at + taken


def _words(words: Sequence[str], start: int, count: int) -> list[str]:
    return [words[i % len(words)] for i in range(start, start + count)]
