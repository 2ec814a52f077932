"""Makes the folders of pictures the benchmarks read: crops of the built-in photographs, as JPEG files of 256x256."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tokbench.data import Item, load, open_source
from tokbench.spec import ImagePrepare


def make_pictures(folder: Path, count: int) -> Path:
    """Write `count` 256x256 crops of the built-in photographs and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source("sample:image", "image")
    keys = source.keys()
    photos = [row for key in keys for row in load(source, key, ImagePrepare("native", None)) if isinstance(row, Item)]
    rng = np.random.Generator(np.random.PCG64(0))
    for index in range(count):
        photo = photos[index % len(photos)].signal
        top, left = (int(rng.integers(0, size - 255)) for size in photo.shape[1:])
        crop = photo[:, top : top + 256, left : left + 256]
        Image.fromarray(np.ascontiguousarray(crop.transpose(1, 2, 0))).save(folder / f"{index:05d}.jpg", quality=92)
    return folder
