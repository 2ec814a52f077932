"""Vectors as text, for what metrics read from references and the engine keeps."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt


def packed(values: npt.NDArray[np.floating]) -> str:
    """Return numbers as base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def unpacked(text: str) -> npt.NDArray[np.float32]:
    """Return the numbers of `packed`, (n,) float32."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
