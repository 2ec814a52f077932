"""The faces a dataset says are in a picture or clip: key points, boxes and ratios, in pixels of what is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from tokbench.errors import NotApplicable, Undefined
from tokbench.types import Sample

Points = npt.NDArray[np.float64]
"""(5, 2) x, y in pixels: left eye, right eye, tip of the nose, left and right corner of the mouth, as the viewer sees them."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Face:
    """One face of a frame.

    Attributes:
        frame: Index in the batch's clip; 0 for an image.
        points: Five key points, or None where they are missing or unreadable.
        box: Where it is, when known.
        ratio: Its longer side over the picture's longer side; the dataset's own number where it gives one.
    """

    frame: int
    points: Points | None
    box: Box | None
    ratio: float | None


@dataclass(frozen=True)
class Scene:
    """Which frames of a row are looked at, and the faces in them."""

    frames: tuple[int, ...]
    faces: tuple[Face, ...]


def annotated(sample: Sample, index: int) -> Scene | None:
    """Return what the dataset says of a row, or None where it says nothing of faces.

    The annotation is `{"size": [H, W], "faces": [{"kps": [[x, y] * 5], "box": [l, t, r, b], "ratio": r, "frame": f}]}` in
    pixels of the file, as displayed. `size` may be left out under the preset `tokbench-pad`, whose metrics compare at the
    file's own size. In a video, `frame` counts the file's frames from zero, `frames` lists those looked at (with those of
    the faces), and what lies outside the clip belongs to other clips. A `ratio` that is not given is the box's longer side
    over the file's longer side.

    Raises:
        NotApplicable: The picture was cropped, so that its pixels cannot be found from the file's.
        Undefined: `faces` is no list of faces, the size is needed and not given, or a face of a video names no frame.
    """
    annotation = sample.annotations[index] if sample.annotations else {}
    if "faces" not in annotation:
        return None
    faces = _listed(annotation["faces"], sample.keys[index])
    height, width = sample.reference.shape[-2:]
    size = _size(annotation, sample, index)
    scale = _scale(size, (height, width))
    if sample.reference.ndim == 4:
        return Scene((0,), tuple(_face(face, 0, scale, max(size)) for face in faces))
    start, length = _start(sample.keys[index]), sample.reference.shape[2]
    if any(not isinstance(face.get("frame"), int) for face in faces):
        raise Undefined("a face of a video names no frame: give each face `frame`, counted from zero")
    listed = {int(cast("int", face["frame"])) for face in faces}
    listed |= {int(frame) for frame in cast("Sequence[int]", annotation.get("frames", ()))}
    inside = sorted(frame - start for frame in listed if 0 <= frame - start < length)
    found = [(int(cast("int", face["frame"])) - start, face) for face in faces]
    return Scene(
        tuple(inside), tuple(_face(face, frame, scale, max(size)) for frame, face in found if 0 <= frame < length)
    )


def ratio_of(box: Box, shape: tuple[int, int]) -> float:
    """Return a face's ratio: the longer side of its box over the longer side of its picture (H, W)."""
    left, top, right, bottom = box
    return max(right - left, bottom - top) / max(shape)


def overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def _listed(faces: object, key: str) -> Sequence[Mapping[str, object]]:
    if not isinstance(faces, list | tuple) or not all(isinstance(face, Mapping) for face in faces):
        raise Undefined(f"the annotation `faces` of {key} is not a list of faces, each with `kps` and `box`")
    return faces


def _size(annotation: Mapping[str, object], sample: Sample, index: int) -> tuple[int, int]:
    given = annotation.get("size")
    if isinstance(given, list | tuple) and len(given) == 2:
        return int(given[0]), int(given[1])
    if sample.codec is None:  # preset tokbench-pad: the file's own pixels
        height, width = sample.reference.shape[-2:]
        return int(height), int(width)
    raise Undefined(
        f"the key points of {sample.keys[index]} carry no picture size, and the picture may have been resized: add "
        '"size": [H, W] to its annotation, or use preset tokbench-pad'
    )


def _scale(size: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float]:
    """Return factors for x and y from a file of `size` to a picture of `shape`, both (H, W)."""
    down, across = shape[0] / size[0], shape[1] / size[1]
    # A resized side is rounded to a whole pixel; more than that between the two factors is a crop.
    if max(abs(size[1] * down - shape[1]), abs(size[0] * across - shape[0])) > 1:
        raise NotApplicable(
            f"key points are in pixels of a {size[0]}x{size[1]} file and the prepare step cropped it to "
            f"{shape[0]}x{shape[1]}; use preset tokbench-pad or native"
        )
    return across, down


def _face(face: Mapping[str, object], frame: int, scale: tuple[float, float], longest: int) -> Face:
    points = _numbers(face.get("kps"))
    corners = _numbers(face.get("box"))
    box = None
    if corners is not None and corners.size == 4:
        box = cast("Box", tuple(float(v) for v in _mapped(corners.reshape(2, 2), scale).flatten()))
    given = face.get("ratio")
    ratio = float(given) if isinstance(given, int | float) and math.isfinite(given) else None
    if ratio is None and corners is not None and corners.size == 4:
        left, top, right, bottom = (float(v) for v in corners.flatten())
        ratio = max(right - left, bottom - top) / longest
    return Face(frame, None if points is None or points.shape != (5, 2) else _mapped(points, scale), box, ratio)


def _numbers(value: object) -> Points | None:
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.size and np.isfinite(found).all() else None


def _mapped(points: Points, scale: tuple[float, float]) -> Points:
    # Whole numbers are the middles of pixels, as OpenCV has them.
    mapped: Points = (points + 0.5) * np.asarray(scale) - 0.5
    return mapped if scale != (1.0, 1.0) else points


def _start(key: str) -> int:
    _, sign, frame = key.rpartition("#")
    return int(frame) if sign and frame.isdigit() else 0
