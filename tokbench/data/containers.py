"""Tells from a container's own length fields that bytes are missing, which decoders often pass over in silence."""

from __future__ import annotations

import os
from typing import BinaryIO

from tokbench.errors import DecodeError

_RIFF_SLACK = 9  # writers disagree on whether the size counts its own header and the pad byte
_RIFF_OPEN_ENDED = 0x7FFFFFFF  # sizes from here on are what streaming writers put
_MP4_TOP = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"pnot", b"uuid", b"meta")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_complete(handle: BinaryIO) -> None:
    """Check RIFF (WAV, AVI), ISO (MP4, MOV, M4A) and Matroska (MKV, WebM) files; others state no length and pass.

    The position of `handle` is put back to the start.

    Raises:
        DecodeError: The header declares more bytes than there are.
    """
    total = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    head = handle.read(64)
    declared = _riff(head) or _matroska(head) or _iso(handle, head, total)
    handle.seek(0)
    if declared is not None and declared > total:
        raise DecodeError(f"is cut short: {total} of {declared} bytes are there")


def _riff(head: bytes) -> int | None:
    if head[:4] != b"RIFF" or len(head) < 12:
        return None
    size = int.from_bytes(head[4:8], "little")
    return None if size in (0, 0xFFFFFFFF) or size >= _RIFF_OPEN_ENDED else max(0, size + 8 - _RIFF_SLACK)


def _matroska(head: bytes) -> int | None:
    if head[:4] != _EBML:
        return None
    size, start = _vint(head, 4)
    at = start + (size or 0)
    if size is None or head[at : at + 4] != _SEGMENT or len(head) < at + 12:
        return None
    size, start = _vint(head, at + 4)
    return None if size is None else start + size


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """Read an EBML length: (value, position behind it); None where it is left unknown."""
    width = 9 - data[at].bit_length() if data[at] else 9
    if width > 8:
        return None, at + 1
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _iso(handle: BinaryIO, head: bytes, total: int) -> int | None:
    if head[4:8] not in _MP4_TOP:
        return None
    at = 0
    while at + 8 <= total:
        handle.seek(at)
        box = handle.read(16)
        size, kind = int.from_bytes(box[:4], "big"), box[4:8]
        if size == 1 and len(box) == 16:
            size = int.from_bytes(box[8:16], "big")
        if kind not in _MP4_TOP or size < 8:  # to the end of the file, or padding this reader does not know
            return None
        at += size
    return at
