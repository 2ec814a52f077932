"""Decodes video files with PyAV, frame by frame, and cuts them into clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokbench.data.containers import check_complete
from tokbench.data.image import MAX_PIXELS
from tokbench.data.types import Blob, Item, Raw
from tokbench.errors import DecodeError, UsageError
from tokbench.spec import ImagePrepare, VideoPrepare

if TYPE_CHECKING:
    from tokbench.prepare.image import Prepared

Frame = npt.NDArray[np.uint8]

CLOSED: Mapping[str, str] = {"protocol_whitelist": "none"}
"""Container options: a playlist that poses as a video must not make FFmpeg open other files or the network."""


@dataclass(frozen=True, eq=False)
class _Timed:
    pixels: Frame
    time: Fraction


@dataclass
class _Stream:
    """Frames of a file, and what is known of them once they have been read."""

    frames: Iterator[_Timed]
    rate: Fraction | None
    notes: list[str] = field(default_factory=list)


def load_video(
    key: str, source: Blob | Raw, prepare: VideoPrepare, annotations: Mapping[str, object]
) -> tuple[Item, ...]:
    """Decode one video and cut it into clips.

    Frames are converted to RGB by libswscale with the matrix and range of the stream (BT.601 where it does not say, as
    FFmpeg does), bicubic chroma, accurate rounding. They are turned upright by the container's display rotation. With
    `prepare.fps`, frame k is the one nearest in time to k / fps after the first, the earlier of two equally near.
    Each frame is prepared as an image as soon as it is decoded; decoding stops when `prepare.clips` are full.

    Raises:
        DecodeError: The file cannot be read to the end that is needed, has no frames, or fewer than one clip's.
    """
    if isinstance(source, Raw):
        return _cut(key, _from_raw(source), prepare, annotations)
    import av

    with source.open() as handle:
        check_complete(handle)
        try:
            with av.open(handle, mode="r", options=dict(CLOSED)) as container:
                return _cut(key, _from_container(container), prepare, annotations)
        except (av.error.FFmpegError, EOFError) as error:
            detail = str(getattr(error, "strerror", "") or error).lower()
            raise DecodeError(f"cannot be decoded: {detail}") from error


def _from_raw(raw: Raw) -> _Stream:
    rate = Fraction(raw.fps or 25).limit_denominator(100_000)
    return _Stream((_Timed(pixels, i / rate) for i, pixels in enumerate(raw.array)), rate)


def _from_container(container: Any) -> _Stream:
    if not container.streams.video:
        raise DecodeError("has no video track")
    stream = container.streams.video[0]
    context = stream.codec_context
    context.thread_count = 1
    if context.width * context.height > MAX_PIXELS:
        raise DecodeError(f"has frames of {context.width}x{context.height} pixels, more than are read")
    rate = stream.average_rate or stream.guessed_rate
    out = _Stream(iter(()), rate)
    ratio = stream.sample_aspect_ratio
    if ratio not in (None, 0, 1):
        out.notes.append(f"pixels of aspect {ratio.numerator}:{ratio.denominator} taken as square")
    if len(container.streams.video) > 1:
        out.notes.append(f"first of {len(container.streams.video)} video tracks")
    out.frames = _decoded(container, stream, rate, out.notes)
    return out


def _decoded(container: Any, stream: Any, rate: Fraction | None, notes: list[str]) -> Iterator[_Timed]:
    from av.video.reformatter import Interpolation

    # Bit-exact and accurately rounded, so that frames do not depend on the processor's vector instructions.
    flags = int(
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
    )
    last = Fraction(-1)
    packets = index = 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DecodeError(f"is damaged at frame {index}")
            if index == 0:
                if frame.interlaced_frame:
                    notes.append("interlaced, not deinterlaced")
                if frame.rotation % 360:
                    notes.append(f"rotated by {frame.rotation % 360} degrees")
            pixels: Frame = frame.to_ndarray(format="rgb24", interpolation=flags)
            if frame.rotation % 90 == 0:
                pixels = np.rot90(pixels, frame.rotation // 90 % 4)
            time = frame.pts * frame.time_base if frame.pts is not None else index / (rate or Fraction(25))
            last = max(last, time) if index else time
            yield _Timed(pixels, last)
            index += 1
    if stream.frames > packets and "mov" in container.format.name:
        raise DecodeError(f"is cut short: {packets} of {stream.frames} frames are there")


def _at_rate(frames: Iterator[_Timed], own: Fraction | None, rate: Fraction) -> Iterator[Frame]:
    """Yield the frame nearest to k / rate after the first one, for k = 0, 1, ... until the last frame is over."""
    previous: _Timed | None = None
    start = Fraction(0)
    k = 0
    for frame in frames:
        if previous is None:
            start = frame.time
        else:
            while start + k / rate <= (previous.time + frame.time) / 2:
                yield previous.pixels
                k += 1
        previous = frame
    if previous is not None:
        end = previous.time + 1 / (own or rate)
        while start + k / rate < end:
            yield previous.pixels
            k += 1


def _cut(key: str, stream: _Stream, prepare: VideoPrepare, annotations: Mapping[str, object]) -> tuple[Item, ...]:
    if prepare.frames < 1 or (prepare.clips is not None and prepare.clips < 1):
        raise UsageError(f"clips={prepare.clips} of frames={prepare.frames}: both are at least 1")
    rate = stream.rate
    frames: Iterator[Frame] = (timed.pixels for timed in stream.frames)
    if prepare.fps is not None:
        rate = Fraction(prepare.fps).limit_denominator(100_000)
        frames = _at_rate(stream.frames, stream.rate, rate)
    items: list[Item] = []
    waiting: list[Prepared] = []
    for prepared in _prepared(frames, prepare):
        waiting.append(prepared)
        if len(waiting) < prepare.frames:
            continue
        items.append(
            Item(
                key=f"{key}#{len(items) * prepare.frames:06d}",
                group=key,
                signal=_stacked([frame.signal for frame in waiting]),
                fps=None if rate is None else float(rate),
                original=_stacked(originals) if (originals := _originals(waiting)) else None,
                padding=waiting[0].padding,
                notes=tuple(stream.notes),
                annotations=annotations,
            )
        )
        waiting.clear()
        if len(items) == prepare.clips:
            break
    if not items:
        raise DecodeError(
            f"has {len(waiting)} frames, fewer than the {prepare.frames} of a clip" if waiting else "has no frames"
        )
    if waiting:
        items[-1] = replace(items[-1], notes=(*items[-1].notes, f"last {len(waiting)} frames left out"))
    return tuple(items)


def _prepared(frames: Iterator[Frame], prepare: VideoPrepare) -> Iterator[Prepared]:
    from PIL import Image

    from tokbench.prepare.image import apply_image

    still = ImagePrepare(preset=prepare.preset, size=prepare.size)
    for pixels in frames:
        yield apply_image(Image.fromarray(np.ascontiguousarray(pixels)), still)


def _stacked(frames: Sequence[Frame]) -> Frame:
    """Stack (3, H, W) frames into (3, T, H, W)."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise DecodeError("changes its frame size on the way")
    return np.stack(frames, axis=1)


def _originals(frames: Sequence[Prepared]) -> list[Frame]:
    return [frame.original for frame in frames if frame.original is not None]
