"""Built-in faces: two photographs of installed packages, seven faces in all, with five key points each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import cast

from tokbench.data.samples.entry import Entry
from tokbench.data.samples.packages import package_folder, photo
from tokbench.data.types import Blob
from tokbench.errors import DataAbsent


def face_entries() -> list[Entry]:
    """Return scikit-image's astronaut (one face, 512x512) and the test picture of insightface (six faces, 1280x886)."""
    return [
        Entry("faces/astronaut", photo("astronaut"), annotate=partial(face_annotations, "faces/astronaut")),
        Entry("faces/group", _group(), annotate=partial(face_annotations, "faces/group")),
    ]


def face_annotations(key: str) -> Mapping[str, object]:
    """Return a picture's size (H, W) and its faces, left to right: box and five key points, in its pixels.

    Boxes (left, top, right, bottom) and points were found once by a detector and a landmark network, and looked at.
    """
    return _annotations()[key]


@cache
def _annotations() -> Mapping[str, Mapping[str, object]]:
    text = (Path(__file__).parent / "faces.json").read_text(encoding="utf-8")
    return cast("Mapping[str, Mapping[str, object]]", json.loads(text))


def _group() -> Blob:
    folder = package_folder("insightface")
    file = None if folder is None else folder / "data" / "images" / "t1.jpg"
    if file is None or not file.is_file():
        raise DataAbsent(
            "the test picture t1.jpg is not in the installed insightface", "pip install 'insightface>=2.1,<3'"
        )
    return Blob(name=file.name, path=str(file))
