"""Loads one file: decode and prepare, with every way it can be broken turned into a failure."""

from __future__ import annotations

from collections.abc import Mapping

from tokbench.data.audio import load_audio
from tokbench.data.image import load_image
from tokbench.data.types import Blob, Failure, Item, Made, Source
from tokbench.data.video import load_video
from tokbench.errors import DecodeError, NotAvailable, UsageError
from tokbench.spec import AudioPrepare, ImagePrepare, VideoPrepare

Prepare = ImagePrepare | VideoPrepare | AudioPrepare


def load(source: Source, key: str, prepare: Prepare) -> tuple[Item | Failure, ...]:
    """Decode and prepare one file.

    Args:
        source: The dataset.
        key: One of its keys.
        prepare: How a file becomes the reference; its type chooses the decoder.

    Returns:
        One item for an image, one or more for a video or a recording, or exactly one failure. A broken file never
        raises.

    Raises:
        UsageError: The prepare step cannot be done on any file.
        NotAvailable: A library is missing.
    """
    try:
        origin = source.open(key)
        annotations = source.annotations(key)
    except (UsageError, NotAvailable):
        raise
    except Exception as error:  # a source may fail in any way its storage can
        return (Failure(key, key, reason(error)),)
    return decode(key, origin, prepare, annotations)


def decode(
    key: str, origin: Blob | Made, prepare: Prepare, annotations: Mapping[str, object]
) -> tuple[Item | Failure, ...]:
    """Do what `load` does, for a file whose place is known."""
    try:
        signal = origin.make() if isinstance(origin, Made) else origin
        if isinstance(prepare, ImagePrepare):
            return load_image(key, signal, prepare, annotations)
        if isinstance(prepare, VideoPrepare):
            return load_video(key, signal, prepare, annotations)
        return load_audio(key, signal, prepare, annotations)
    except (UsageError, NotAvailable):
        raise
    except Exception as error:  # decoders of damaged files raise anything, MemoryError included
        return (Failure(key, key, reason(error)),)


def reason(error: Exception) -> str:
    """Say in a short sentence why a file could not be read, without the machine's paths."""
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines() or [""]
    kind = type(error).__name__
    detail = lines[0][:160]
    return (
        f"cannot be decoded: {detail}"
        if isinstance(error, OSError) and detail
        else f"cannot be decoded: {kind} {detail}".rstrip()
    )
