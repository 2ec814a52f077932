"""What a text recogniser is to the metrics, and the pictures and regions it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
"""An image: uint8 (H, W, 3), RGB."""

Point = tuple[float, float]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the right and bottom edges are outside."""


@dataclass(frozen=True)
class Region:
    """Where a word stands in an image: a box inside it, and four corners where the word is slanted."""

    box: Box
    quad: tuple[Point, Point, Point, Point] | None = None


@dataclass(frozen=True)
class Read:
    """What a recogniser read in one region, with its own confidence in [0, 1]."""

    text: str
    confidence: float


class Recogniser(Protocol):
    """Reads words at given places.

    `alphabet` holds every character it can write. `read` must not let one image's words depend on those of another call.
    """

    @property
    def alphabet(self) -> frozenset[str]: ...

    def read(self, images: Sequence[Pixels], places: Sequence[Sequence[Region]]) -> list[list[Read]]:
        """Read the regions of each image; regions are not empty and lie inside their image."""
        ...


def pixels(x: Tensor) -> Pixels:
    """Return an image (3, H, W) in [0, 1] as 8-bit RGB (H, W, 3), rounded half to even as the engine rounds."""
    eight: Pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return eight


def cut(image: Pixels, box: Box) -> Pixels:
    """Return the part of an image that a box holds: a view."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]
