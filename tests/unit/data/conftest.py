"""Writers of small media files."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

VideoWriter = Callable[..., Path]


@pytest.fixture
def photo() -> np.ndarray:
    """Return a smooth coloured picture with some noise, uint8 (40, 56, 3)."""
    rng = np.random.Generator(np.random.PCG64(7))
    y, x = np.mgrid[0:40, 0:56]
    planes = [4 * x, 6 * y, 255 - 2 * x - y]
    return np.clip(np.stack(planes, -1) + rng.integers(-9, 10, (40, 56, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def movie() -> np.ndarray:
    """Return 23 distinct noisy frames, uint8 (23, 32, 48, 3)."""
    return np.random.Generator(np.random.PCG64(8)).integers(0, 256, (23, 32, 48, 3), dtype=np.uint8)


@pytest.fixture
def write_video() -> VideoWriter:
    def write(
        path: Path,
        frames: np.ndarray,
        codec: str = "ffv1",
        pixels: str = "bgr0",
        rate: int = 25,
        options: dict[str, str] | None = None,
        times: list[int] | None = None,
        degrees: int = 0,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixels
            stream.options = options or {}
            if degrees:
                stream.set_display_rotation(degrees)
            for index, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                if times is not None:
                    picture.pts, picture.time_base = times[index], Fraction(1, rate)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def pictures_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of n little pictures into a folder of the test."""

    def write(count: int, folder: str = "pictures", side: int = 8) -> Path:
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        for index in range(count):
            Image.fromarray(np.full((side, side, 3), index, np.uint8)).save(home / f"{index:04d}.png")
        return home

    return write
