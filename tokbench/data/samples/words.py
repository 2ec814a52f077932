"""Built-in pages of single words over photographs and plain grounds, each word's box and text known, sizes spread wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from tokbench.data.samples.entry import Entry
from tokbench.data.samples.packages import photo
from tokbench.data.types import Made, Raw

if TYPE_CHECKING:
    from PIL import Image, ImageFont

_SIDE = 512
_MARGIN = 10
_AROUND = 2  # pixels that a box holds around the ink

_Colour = tuple[int, int, int]

_PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "motorcycle_left", "rocket")
_GROUNDS: Sequence[tuple[_Colour, _Colour]] = (
    ((255, 255, 255), (0, 0, 0)),
    ((244, 236, 216), (60, 40, 30)),
    ((24, 28, 40), (232, 232, 224)),
    ((190, 40, 44), (255, 244, 214)),
    ((36, 92, 160), (255, 255, 255)),
    ((168, 172, 170), (70, 74, 78)),
)
"""Ground and ink of the plain pages."""

_RATIOS = (0.033, 0.013, 0.024, 0.045, 0.028, 0.042, 0.037, 0.022, 0.06, 0.017)
"""Box length per character over the long side, one a line of words, taken in turn."""

_WORDS = [
    "about",
    "almond",
    "anchor",
    "autumn",
    "bakery",
    "basket",
    "beyond",
    "bicycle",
    "bread",
    "bridge",
    "butter",
    "candle",
    "canvas",
    "castle",
    "cedar",
    "chapter",
    "cherry",
    "circle",
    "cloud",
    "coffee",
    "copper",
    "corner",
    "cotton",
    "dancer",
    "desert",
    "dinner",
    "dollar",
    "double",
    "dragon",
    "eagle",
    "early",
    "engine",
    "evening",
    "fabric",
    "family",
    "farmer",
    "feather",
    "figure",
    "finger",
    "flower",
    "forest",
    "fossil",
    "friend",
    "frozen",
    "galaxy",
    "garden",
    "gentle",
    "ginger",
    "golden",
    "guitar",
    "hammer",
    "harbour",
    "harvest",
    "hidden",
    "honey",
    "hotel",
    "hundred",
    "island",
    "jacket",
    "jungle",
    "kettle",
    "kitchen",
    "ladder",
    "lantern",
    "lemon",
    "letter",
    "library",
    "listen",
    "little",
    "magnet",
    "marble",
    "market",
    "meadow",
    "mirror",
    "monday",
    "morning",
    "mountain",
    "needle",
    "night",
    "number",
    "orange",
    "orchid",
    "oyster",
    "paper",
    "parade",
    "pencil",
    "people",
    "pepper",
    "planet",
    "pocket",
    "quarter",
    "quiet",
    "rabbit",
    "radio",
    "railway",
    "rather",
    "reader",
    "ribbon",
    "river",
    "saddle",
    "sailor",
    "salad",
    "school",
    "season",
    "second",
    "shadow",
    "silver",
    "simple",
    "spider",
    "spring",
    "square",
    "station",
    "stone",
    "street",
    "summer",
    "sunday",
    "table",
    "teacher",
    "temple",
    "thunder",
    "ticket",
    "tiger",
    "timber",
    "today",
    "travel",
    "tunnel",
    "turtle",
    "umbrella",
    "under",
    "valley",
    "velvet",
    "village",
    "violin",
    "walnut",
    "water",
    "weather",
    "window",
    "winter",
    "wonder",
    "yellow",
    "zebra",
]


@dataclass(frozen=True)
class _Placed:
    text: str
    at: tuple[int, int]
    size: int
    bold: bool
    box: tuple[int, int, int, int]


def word_entries() -> list[Entry]:
    """Return twelve pages of 512x512 pixels: six photographs and six plain grounds, with about fifty words each."""
    return [
        Entry(f"words/{name}", Made(partial(make_words, name)), annotate=partial(word_annotations, name))
        for name in (*_PHOTOS, *(f"plain-{n}" for n in range(1, len(_GROUNDS) + 1)))
    ]


def make_words(name: str) -> Raw:
    """Render a page: (512, 512, 3) uint8. The glyphs are those of Pillow's built-in font and of its FreeType."""
    from PIL import ImageDraw

    image, ink = _ground(name)
    draw = ImageDraw.Draw(image)
    for word in _layout(name):
        fill = ink or _contrast(image, word.box)
        outline = None if ink else _contrast(fill)
        draw.text(
            word.at,
            word.text,
            fill=fill,
            font=_font(word.size),
            anchor="lt",
            stroke_width=1 if word.bold else 0,
            stroke_fill=outline or fill,
        )
    return Raw(np.asarray(image))


def word_annotations(name: str) -> Mapping[str, object]:
    """Return the page's size (H, W) and its words: text, and box (left, top, right, bottom) in pixels of the page."""
    words = [{"text": word.text, "box": list(word.box)} for word in _layout(name)]
    return {"size": [_SIDE, _SIDE], "words": words}


def _ground(name: str) -> tuple[Image.Image, _Colour | None]:
    from PIL import Image

    if name.startswith("plain-"):
        paper, ink = _GROUNDS[int(name.removeprefix("plain-")) - 1]
        return Image.new("RGB", (_SIDE, _SIDE), paper), ink
    with photo(name).open() as handle, Image.open(handle) as file:
        picture = file.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box), None


def _contrast(under: Image.Image | _Colour, box: tuple[int, int, int, int] | None = None) -> _Colour:
    """Return near white on dark, near black on light."""
    mean = np.asarray(under if box is None or isinstance(under, tuple) else under.crop(box)).reshape(-1, 3).mean()
    return (250, 250, 250) if mean < 128 else (8, 8, 8)


def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font


@cache
def _layout(name: str) -> tuple[_Placed, ...]:
    """Fill a page with lines of words of one size each; texts and gaps are drawn from a generator seeded by the name."""
    random = np.random.Generator(np.random.PCG64(sum(ord(letter) << (8 * (i % 4)) for i, letter in enumerate(name))))
    turn = int(random.integers(len(_RATIOS)))
    placed: list[_Placed] = []
    top = _MARGIN
    while True:
        ratio = _RATIOS[turn % len(_RATIOS)]
        line = _line(ratio, top, random, outlined=not name.startswith("plain-"))
        if max(word.box[3] for word in line) > _SIDE - _MARGIN:
            return tuple(placed)
        placed += line
        top = max(word.box[3] for word in line) + int(random.integers(4, 12))
        turn += 1


def _line(ratio: float, top: int, random: np.random.Generator, *, outlined: bool) -> list[_Placed]:
    line: list[_Placed] = []
    left = _MARGIN + int(random.integers(24))
    while True:
        text = _text(random, short=ratio > 0.04)
        size = max(8, round(ratio * _SIDE * len(text) / _font(100).getlength(text) * 100))
        bold = (outlined or bool(random.integers(2))) and size > 16
        ink = _ink(text, size, bold)
        at = (left + _AROUND - ink[0], top + _AROUND - ink[1])
        box = (left, top, left + ink[2] - ink[0] + 2 * _AROUND, top + ink[3] - ink[1] + 2 * _AROUND)
        if box[2] > _SIDE - _MARGIN:
            if line:
                return line
            continue
        line.append(_Placed(text, at, size, bold, box))
        left = box[2] + max(8, size // 2) + int(random.integers(12))


def _ink(text: str, size: int, bold: bool) -> tuple[int, int, int, int]:
    """Return the box of what is drawn: left, top, right, bottom relative to where it is drawn."""
    from PIL import Image, ImageDraw

    edge = 8
    canvas = Image.new("L", (round(_font(size).getlength(text)) + size + 2 * edge, 2 * size + 2 * edge))
    stroke = 1 if bold else 0
    ImageDraw.Draw(canvas).text((edge, edge), text, fill=255, font=_font(size), anchor="lt", stroke_width=stroke)
    found = canvas.getbbox()
    assert found is not None, "every word has ink"
    left, top, right, bottom = found
    return left - edge, top - edge, right - edge, bottom - edge


def _text(random: np.random.Generator, *, short: bool) -> str:
    """Draw a word in lower case, with a capital, in capitals, or a number, or letters with a number."""
    kind = int(random.integers(10))
    if kind == 0:
        return str(int(random.integers(20, 99_999)))
    word = _WORDS[int(random.integers(len(_WORDS)))]
    while short and len(word) > 6:
        word = _WORDS[int(random.integers(len(_WORDS)))]
    if kind == 1:
        return f"{word[:2].upper()}{int(random.integers(20, 999))}"
    return (word, word.capitalize(), word.upper())[kind % 3]
