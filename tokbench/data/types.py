"""What the data room hands out: items, failures, sources and manifests, without torch."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from tokbench.errors import DecodeError
from tokbench.spec import Modality
from tokbench.spec import digest as sha256_of

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Item:
    """One row: an image, a clip or a segment, decoded and prepared.

    Attributes:
        key: Stable row key: the file key for an image or a whole recording, `file.mp4#000017` (index of the first frame,
            from zero, after any change of frame rate) for a clip, `a.wav#000003.000` (start in seconds) for a segment.
        group: Key of the file it was cut from.
        signal: Image uint8 (3, H, W); video uint8 (3, T, H, W); audio float32 (C, T) in [-1, 1].
        sample_rate: Hz (audio).
        fps: Frames a second (video), None where the file does not say.
        original: Before resizing, for the preset `tokbench-pad`, whose metrics compare at the original size: uint8
            (3, H, W) or (3, T, H, W).
        padding: Left, top, right, bottom of the black pad of `tokbench-pad`, in padded pixels.
        notes: What was done to the file beside decoding it, e.g. `alpha composited on white`.
        annotations: Ground truth the dataset carries for the file.
    """

    key: str
    group: str
    signal: Array
    sample_rate: int | None = None
    fps: float | None = None
    original: Array | None = None
    padding: tuple[int, int, int, int] | None = None
    notes: tuple[str, ...] = ()
    annotations: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Failure:
    """One file that could not be read; becomes a failed row. `reason` is a short sentence."""

    key: str
    group: str
    reason: str


@dataclass(frozen=True)
class Blob:
    """Where the bytes of one file are: a file on disk, a span of one, or memory. Small and picklable.

    Attributes:
        name: File name; its extension is a hint that decoders check and never trust.
        path: File on disk, or None when `data` holds the bytes.
        offset: First byte of the span.
        size: Bytes of the span; None: to the end of the file.
        data: The bytes themselves.
    """

    name: str
    path: str | None = None
    offset: int = 0
    size: int | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def extension(self) -> str:
        """Return the lower-case extension with its dot, or an empty string."""
        return Path(self.name).suffix.lower()

    def open(self) -> BinaryIO:
        """Open the bytes for reading; a span of a larger file is read into memory.

        Raises:
            DecodeError: Not a regular file, empty, or shorter than the span; permission denied or absent.
        """
        if self.data is not None:
            return io.BytesIO(_not_empty(self.data))
        assert self.path is not None
        path = Path(self.path)
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise DecodeError("is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise DecodeError("is not a regular file")
            if status.st_size == 0:
                raise DecodeError("is empty (0 bytes)")
            handle = path.open("rb")
            if self.size is None and self.offset == 0:
                return handle
            with handle:
                handle.seek(self.offset)
                data = handle.read() if self.size is None else handle.read(self.size)
        except OSError as error:
            raise DecodeError((error.strerror or type(error).__name__).lower()) from error
        if self.size is not None and len(data) < self.size:
            raise DecodeError(f"is cut short: {len(data)} of {self.size} bytes are there")
        return io.BytesIO(_not_empty(data))


@dataclass(frozen=True, eq=False)
class Raw:
    """A signal that never was a file: uint8 (H, W, 3), uint8 (T, H, W, 3) or float32 (C, T)."""

    array: Array
    sample_rate: int | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Made:
    """A signal that is computed when asked for; `make` is picklable (a module's function, or a partial of one)."""

    make: Callable[[], Raw]


class Source(Protocol):
    """A dataset: files behind stable keys. Cheap to make, picklable; reading starts with the first call of `keys`.

    Attributes:
        uri: What `open_source` was given.
        modality: What its files hold.
        ignored: Number of files that are there and are not of the modality.
        hint: How to get data that is missing here, else an empty string.
    """

    @property
    def uri(self) -> str: ...

    @property
    def modality(self) -> Modality: ...

    @property
    def ignored(self) -> int: ...

    @property
    def hint(self) -> str: ...

    def keys(self) -> tuple[str, ...]:
        """Return the keys, sorted, unique, relative and with forward slashes. Raises UsageError when there are none."""
        ...

    def open(self, key: str) -> Blob | Made:
        """Return where the file of `key` is, without reading it. Raises DecodeError when it is known to be damaged."""
        ...

    def sha256(self, key: str) -> str:
        """Return the sha256 of the file's bytes, or of a computed signal. Raises DecodeError when it cannot be read."""
        ...

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return the ground truth of `key`, empty where there is none."""
        ...


@dataclass(frozen=True)
class Manifest:
    """Every (key, sha256) of a dataset in key order; its digest is part of the protocol.

    A file that cannot be read has `unreadable` in place of the sha256: it is a row, and it will be a failed one.
    """

    entries: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Return the sha256 of the entries."""
        return sha256_of(self.entries)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys alone."""
        return tuple(key for key, _ in self.entries)

    def slice(self, start: int, stop: int) -> Manifest:
        """Return the entries from `start` up to `stop`."""
        return Manifest(self.entries[start:stop])

    def __len__(self) -> int:
        return len(self.entries)


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise DecodeError("is empty (0 bytes)")
    return data
