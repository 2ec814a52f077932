"""Digests of files and of computed signals."""

from __future__ import annotations

import hashlib

from tokbench.data.types import Blob, Made
from tokbench.errors import DecodeError

_BLOCK = 1 << 20


def sha256_of_blob(blob: Blob) -> str:
    """Return the sha256 of a file's bytes.

    Raises:
        DecodeError: The file cannot be read.
    """
    state = hashlib.sha256()
    try:
        with blob.open() as handle:
            while block := handle.read(_BLOCK):
                state.update(block)
    except OSError as error:
        raise DecodeError((error.strerror or type(error).__name__).lower()) from error
    return state.hexdigest()


def sha256_of_made(made: Made) -> str:
    """Return the sha256 of a computed signal: its type, shape, rates and little-endian samples."""
    raw = made.make()
    little = raw.array.astype(raw.array.dtype.newbyteorder("<"), copy=False)
    head = f"{raw.array.dtype.name} {raw.array.shape} {raw.sample_rate} {raw.fps}\n"
    return hashlib.sha256(head.encode() + little.tobytes()).hexdigest()
