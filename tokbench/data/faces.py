"""Face datasets: images with the faces in them, in TokBench's layout, as WFLW lists them, or a folder of identities (LFW)."""

from __future__ import annotations

import hashlib
import json
import math
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

Faces = Sequence[Mapping[str, object]]

_WFLW_POINTS = 98
_WFLW_FIVE = (96, 97, 54, 76, 82)
"""Middles of the eyes, tip of the nose, corners of the mouth, among WFLW's 98 points."""


@dataclass(frozen=True)
class Portrait:
    """One image and its faces.

    Attributes:
        path: The image; it may be absent, which makes a failed row.
        faces: Each with `kps`, five (x, y), `box` (left, top, right, bottom), and `ratio` where the dataset gives it; None
            where the dataset does not say (a detector must find them).
        size: (H, W) of the image where the dataset states it, else None: the file's own.
        identity: Who it is, where each image shows one person.
    """

    path: Path
    faces: Faces | None = None
    size: tuple[int, int] | None = None
    identity: str | None = None


class FaceSource:
    """Images whose faces are known. Each row's annotation is `{"size": [H, W], "faces": [...]}`, see `Portrait`.

    An image that the list names and that is not there is a failed row. Images that it does not name are ignored.
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
                there = f"there is {' and '.join(known)}" if known else f"{scheme} has none"
                raise UsageError(f"{uri}: unknown option {option!r}; {there}")
        self._options, self.root = options, Path(place).expanduser().absolute()

    def __reduce__(self) -> tuple[object, ...]:
        return (FaceSource, (self.uri, self._scheme, self._rest, self.modality))

    @cached_property
    def _portraits(self) -> Mapping[str, Portrait]:
        if not self.root.is_dir():
            raise UsageError(f"{self.uri}: {self.root} is not a folder")
        found = dict(_READERS[self._scheme](self.uri, self.root, self._options))
        if not found:
            raise UsageError(f"{self.uri} holds no image with faces")
        return {key: found[key] for key in sorted(found)}

    @cached_property
    def ignored(self) -> int:
        """Return how many image files below the folder no annotation names."""
        named = {portrait.path for portrait in self._portraits.values()}
        images = {path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS["image"]}
        return len(images - named)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the images, sorted."""
        return tuple(self._portraits)

    def open(self, key: str) -> Blob:
        """Return where the image is."""
        path = self._portraits[key].path
        return Blob(name=path.name, path=str(path))

    def sha256(self, key: str) -> str:
        """Return the sha256 of the image's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return the size that the points belong to, the faces, and who it is, as far as the dataset says.

        Raises:
            DecodeError: The image's size is needed and cannot be read.
        """
        portrait = self._portraits[key]
        who = {} if portrait.identity is None else {"identity": portrait.identity}
        if portrait.faces is None:
            return who
        return {"size": list(portrait.size or _size(self.open(key))), "faces": list(portrait.faces), **who}

    def annotations_sha256(self, key: str) -> str:
        """Return the digest of the faces, which belongs to the dataset's own: other key points give other scores."""
        portrait = self._portraits[key]
        text = json.dumps([portrait.size, portrait.faces, portrait.identity], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _size(blob: Blob) -> tuple[int, int]:
    from PIL import Image, ImageOps

    try:
        with blob.open() as handle, Image.open(handle) as image:
            turned = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
            return turned.height, turned.width
    except OSError as error:
        raise DecodeError(f"cannot be decoded: {error}") from error


# --------------------------------------------------------------------------------------------------------- TokBench


def _tokbench(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Portrait]]:
    """Read `annotations/face_meta.json` (or the file `truth` names) and the images of `images/face_data/` (or `face_data/`).

    The box's form is not documented there. Of (left, top, right, bottom) and (left, top, width, height) the one is taken
    under which every face's key points lie nearer to the middle of its box; where that is outside some box, boxes are left out.
    """
    named = [Path(options["truth"]).expanduser()] if "truth" in options else []
    places = named or [root / part / "face_meta.json" for part in ("annotations", ".")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(f"{uri}: no annotations/face_meta.json in {root}; name it with ?truth=/path/to/face_meta.json")
    entries = _list(file, _json(file))
    homes = (root / "images" / "face_data", root / "face_data", root)
    images = next((home for home in homes if home.is_dir()), root)
    corners = _box_form([face for entry in entries for face in _list(file, _field(entry, "faces", file.name))])
    for entry in entries:
        name = str(_field(entry, "image_name", file.name))
        about = f"{file.name}: image {name!r}"
        size = (int(_field(entry, "img_height", about)), int(_field(entry, "img_width", about)))
        faces = [
            _tokbench_face(face, corners, f"{about}, face {i}") for i, face in enumerate(_field(entry, "faces", about))
        ]
        yield name, Portrait(images / name, faces, size)


def _tokbench_face(
    face: Mapping[str, Any], corners: Callable[[Any], list[float]] | None, where: str
) -> Mapping[str, object]:
    out: dict[str, object] = {"kps": _field(face, "kps", where)}
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


def _wflw(uri: str, root: Path, options: Mapping[str, str]) -> Iterator[tuple[str, Portrait]]:
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
        yield name, Portrait(images / name, found)


def _around(points: Sequence[tuple[float, float]]) -> list[float]:
    x, y = zip(*points, strict=True)
    return [min(x), min(y), max(x), max(y)]


# -------------------------------------------------------------------------------------------------------------- LFW


def _lfw(_uri: str, root: Path, _options: Mapping[str, str]) -> Iterator[tuple[str, Portrait]]:
    """Read one folder an identity. No key points are stored: the metric needs a detector that finds them."""
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in EXTENSIONS["image"]:
            yield path.relative_to(root).as_posix(), Portrait(path, identity=path.parent.name)


# ---------------------------------------------------------------------------------------------------------- helpers

_Reader = Callable[[str, Path, Mapping[str, str]], Iterator[tuple[str, Portrait]]]
_READERS: Mapping[str, _Reader] = {"tokbench-face": _tokbench, "wflw": _wflw, "lfw": _lfw}
_OPTIONS: Mapping[str, Sequence[str]] = {"tokbench-face": ("truth",), "wflw": ("list",), "lfw": ()}
FACE_SCHEMES = frozenset(_READERS)
"""Schemes of addresses that `FaceSource` reads."""


def _lines(uri: str, file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{uri}: {file}: {why}; name the list with ?list=/path/to/list_98pt_rect_attr_test.txt"
        ) from error
    return [line for line in text.splitlines() if line.strip()]


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def _list(where: object, value: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise UsageError(f"{where}: expected a list of annotations, found {type(value).__name__}")
    return value


def _field(entry: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in entry:
        raise UsageError(f"{where} has no {name!r}")
    return entry[name]
