"""Face datasets: images with the faces in them, in TokBench's layout, as WFLW lists them, or a folder of identities (LFW)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokbench.data.annotated import Listing, Picture, entries, field, read_json
from tokbench.data.extensions import EXTENSIONS
from tokbench.errors import UsageError

Faces = Sequence[Mapping[str, object]]

_WFLW_POINTS = 98
_WFLW_FIVE = (96, 97, 54, 76, 82)
"""Middles of the eyes, tip of the nose, corners of the mouth, among WFLW's 98 points."""


def _portrait(
    path: Path, faces: Faces | None = None, size: tuple[int, int] | None = None, identity: str | None = None
) -> Picture:
    """Return one image and its faces.

    Args:
        path: The image.
        faces: Each with `kps`, five (x, y), `box` (left, top, right, bottom), and `ratio` where the dataset gives it; None
            where the dataset does not say (a detector must find them).
        size: (H, W) of the image where the dataset states it.
        identity: Who it is, where each image shows one person.
    """
    about = {"faces": faces, "identity": identity}
    return Picture(path, lambda: about, size, placed=faces is not None)


# --------------------------------------------------------------------------------------------------------- TokBench


def _tokbench(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Read `annotations/face_meta.json` (or the file `truth` names) and the images of `images/face_data/` (or `face_data/`).

    The box's form is not documented there. Of (left, top, right, bottom) and (left, top, width, height) the one is taken
    under which every face's key points lie nearer to the middle of its box; where that is outside some box, boxes are left out.
    """
    named = [Path(options["truth"]).expanduser()] if "truth" in options else []
    places = named or [root / part / "face_meta.json" for part in ("annotations", ".")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(f"{uri}: no annotations/face_meta.json in {root}; name it with ?truth=/path/to/face_meta.json")
    table = entries(file, read_json(file))
    homes = (root / "images" / "face_data", root / "face_data", root)
    images = next((home for home in homes if home.is_dir()), root)
    corners = _box_form([face for entry in table for face in entries(file, field(entry, "faces", file.name))])
    for entry in table:
        name = str(field(entry, "image_name", file.name))
        about = f"{file.name}: image {name!r}"
        size = (int(field(entry, "img_height", about)), int(field(entry, "img_width", about)))
        faces = [
            _tokbench_face(face, corners, f"{about}, face {i}") for i, face in enumerate(field(entry, "faces", about))
        ]
        yield name, _portrait(images / name, faces, size)


def _tokbench_face(
    face: Mapping[str, Any], corners: Callable[[Any], list[float]] | None, where: str
) -> Mapping[str, object]:
    out: dict[str, object] = {"kps": field(face, "kps", where)}
    if "ratio" in face:
        out["ratio"] = face["ratio"]
    return out if corners is None else out | {"box": corners(face["box"])}


def _box_form(faces: Faces) -> Callable[[Any], list[float]] | None:
    forms: tuple[Callable[[Any], list[float]], ...] = (
        lambda box: [float(value) for value in box],
        lambda box: [float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])],
    )
    if not faces:
        return None
    try:
        away = [max(_distance(form(face["box"]), face["kps"]) for face in faces) for form in forms]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    best = min(range(len(forms)), key=away.__getitem__)
    return forms[best] if away[best] < 1 else None


def _distance(box: Sequence[float], points: Any) -> float:
    """Return how far the points' middle is from the box's: 0 there, 1 at its edge, more outside."""
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return math.inf
    x, y = (math.fsum(float(point[axis]) for point in points) / len(points) for axis in (0, 1))
    return max(abs(2 * x - left - right) / (right - left), abs(2 * y - top - bottom) / (bottom - top))


# ------------------------------------------------------------------------------------------------------------- WFLW


def _wflw(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Read a WFLW list: a line a face, 98 points, then the box and six attributes where it has them, then the image."""
    if "list" in options:
        file = Path(options["list"]).expanduser()
    else:
        lists = sorted(root.rglob("list_98pt*test.txt"))
        # Both forms of the test list come in one archive; the one with boxes says more.
        file = next((path for path in lists if "rect" in path.name), lists[0] if lists else root / "list_98pt_test.txt")
    images = next((place for place in (root / "WFLW_images", root) if place.is_dir()), root)
    faces: dict[str, list[Mapping[str, object]]] = {}
    for number, line in enumerate(_lines(uri, file), 1):
        *numbers, name = line.split()
        about = f"{file.name}, line {number}"
        try:
            values = [float(value) for value in numbers]
        except ValueError as error:
            raise UsageError(f"{about}: {error}") from error
        if len(values) not in {2 * _WFLW_POINTS, 2 * _WFLW_POINTS + 4, 2 * _WFLW_POINTS + 10}:
            raise UsageError(
                f"{about}: {len(values)} numbers; a line has 98 points, then box and attributes, then a name"
            )
        points = list(zip(values[0 : 2 * _WFLW_POINTS : 2], values[1 : 2 * _WFLW_POINTS : 2], strict=True))
        box = values[2 * _WFLW_POINTS : 2 * _WFLW_POINTS + 4] or _around(points)
        faces.setdefault(name, []).append({"kps": [list(points[i]) for i in _WFLW_FIVE], "box": box})
    for name, found in faces.items():
        yield name, _portrait(images / name, found)


def _around(points: Sequence[tuple[float, float]]) -> list[float]:
    x, y = zip(*points, strict=True)
    return [min(x), min(y), max(x), max(y)]


# -------------------------------------------------------------------------------------------------------------- LFW


def _lfw(_uri: str, root: Path, _options: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Read one folder an identity. No key points are stored: the metric needs a detector that finds them."""
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in EXTENSIONS["image"]:
            yield path.relative_to(root).as_posix(), _portrait(path, identity=path.parent.name)


# ---------------------------------------------------------------------------------------------------------- helpers

FACE_LISTINGS: Mapping[str, Listing] = {
    "tokbench-face": Listing(_tokbench, "faces", ("truth",)),
    "wflw": Listing(_wflw, "faces", ("list",)),
    "lfw": Listing(_lfw, "faces"),
}
"""Scheme of an address -> how such a dataset lists its images."""


def _lines(uri: str, file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{uri}: {file}: {why}; name the list with ?list=/path/to/list_98pt_rect_attr_test.txt"
        ) from error
    return [line for line in text.splitlines() if line.strip()]
