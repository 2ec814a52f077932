"""What is kept of a reference's faces, so that the next tokenizer need not pay again, as JSON knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ._faces_nets import Embedding, Found, Pixels, Recogniser
from ._faces_scene import Box, Face, Scene, overlap
from ._faces_table import DEGENERATE, OFF, OK
from ._packing import packed, unpacked

SURVIVES = 0.5
"""Least intersection over union at which two boxes are the same face."""


@dataclass(frozen=True)
class Reference:
    """One row's reference.

    Attributes:
        scene: Frames looked at and faces in them.
        status: Of each face.
        found: The box a detector gave each face; None where it gave none.
        embeddings: (n, D) of the faces whose status is `ok`, in their order.
    """

    scene: Scene
    status: tuple[str, ...]
    found: tuple[Box | None, ...]
    embeddings: Embedding

    @property
    def scorable(self) -> list[Face]:
        """Return the faces that have an embedding."""
        return [face for face, status in zip(self.scene.faces, self.status, strict=True) if status == OK]

    def to_json(self, origin: str) -> dict[str, object]:
        """Return it as JSON knows it; `origin` says what it was read from."""
        faces = [
            {
                "frame": face.frame,
                "kps": None if face.points is None else face.points.tolist(),
                "box": face.box,
                "ratio": face.ratio,
                "status": status,
                "found": found,
            }
            for face, status, found in zip(self.scene.faces, self.status, self.found, strict=True)
        ]
        vectors = packed(self.embeddings)
        return {"of": origin, "frames": list(self.scene.frames), "faces": faces, "embeddings": vectors}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reference:
        """Return what `to_json` was made of."""
        faces = value["faces"]
        count = sum(face["status"] == OK for face in faces)
        vectors = unpacked(value["embeddings"])
        return cls(
            Scene(tuple(value["frames"]), tuple(_face(face) for face in faces)),
            tuple(face["status"] for face in faces),
            tuple(_box(face["found"]) for face in faces),
            vectors.reshape(count, -1) if count else np.zeros((0, 0), np.float32),
        )


def examine(network: Recogniser, image: Pixels, face: Face) -> tuple[str, Pixels | None]:
    """Return whether a face can be scored (`ok`, else why not), and its aligned crop if so."""
    height, width = image.shape[:2]
    if face.box is not None:
        left, top, right, bottom = face.box
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            return OFF, None
    crop = None if face.points is None else network.align(image, face.points)
    if face.points is None or crop is None:
        return DEGENERATE, None
    x, y = face.points.T
    inside = bool(((x >= 0) & (x < width) & (y >= 0) & (y < height)).any())
    return (OK, crop) if inside else (OFF, None)


def crop_of(network: Recogniser, image: Pixels, face: Face) -> Pixels:
    """Return the aligned crop of a face whose status is `ok`."""
    crop = None if face.points is None else network.align(image, face.points)
    assert crop is not None, "its status says that it aligns"
    return crop


def box_found(face: Face, found: Sequence[Found]) -> Box | None:
    """Return the box a detector gave a face: the one that overlaps its own most, or one around its key points."""
    if face.box is not None:
        own = face.box
        best = max(found, key=lambda hit: overlap(own, hit.box), default=None)
        return best.box if best is not None and overlap(own, best.box) >= SURVIVES else None
    if face.points is None:
        return None
    x, y = face.points.mean(0)
    return next((hit.box for hit in found if hit.box[0] <= x <= hit.box[2] and hit.box[1] <= y <= hit.box[3]), None)


def pixels(x: Tensor, row: int, frame: int) -> Pixels:
    """Return a picture of (B, 3, H, W) or (B, 3, T, H, W) in [0, 1] as 8-bit blue, green, red (H, W, 3).

    Rounded half to even, as the engine rounds: a reconstruction the protocol rounded already stays as it is.
    """
    import cv2

    image = x[row] if x.ndim == 4 else x[row, :, frame]
    eight = image.mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    merged: Pixels = cv2.merge((eight[2], eight[1], eight[0]))  # a tenth of the time numpy's transpose takes
    return merged


def through_jpeg(image: Pixels, quality: int) -> Pixels:
    """Return the picture as Pillow's JPEG encoder of that quality leaves it, chroma at half size."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, ::-1]).save(buffer, "JPEG", quality=quality)
    return np.ascontiguousarray(np.asarray(Image.open(buffer))[:, :, ::-1])


def _face(value: Mapping[str, Any]) -> Face:
    points = None if value["kps"] is None else np.asarray(value["kps"], np.float64)
    return Face(value["frame"], points, _box(value["box"]), value["ratio"])


def _box(value: Sequence[float] | None) -> Box | None:
    return None if value is None else cast("Box", tuple(value))
