"""Which file names belong to which modality."""

from __future__ import annotations

from collections.abc import Mapping

from tokbench.errors import UsageError
from tokbench.spec import Modality

EXTENSIONS: Mapping[Modality, tuple[str, ...]] = {
    "image": (
        ".avif", ".bmp", ".gif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pgm", ".png", ".pnm", ".ppm", ".tif",
        ".tiff", ".webp",
    ),
    "video": (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv", ".y4m"),
    "audio": (
        ".aac", ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav",
        ".webm",
    ),
}  # fmt: skip
"""Lower-case extensions that are read; matched without regard to case."""

SIDE = (".json", ".txt")
"""Files that annotate the media file of the same stem."""


def none_found(uri: str, modality: Modality, ignored: int) -> UsageError:
    """Return the error for a dataset without one file of the modality."""
    seen = f"; {ignored} other file{'s' * (ignored != 1)} ignored" if ignored else ""
    return UsageError(f"{uri} holds no {modality} files{seen}. Read are: {' '.join(EXTENSIONS[modality])}")
