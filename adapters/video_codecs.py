"""Video codecs as tokenizers: the payload of a row is one clip's elementary stream, parameter sets included."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokbench.errors import DecodeError, NotApplicable, UsageError
from tokbench.types import Code

from .nn.classical import from_8bit, map_rows, payload_of, require_encoder, to_8bit

if TYPE_CHECKING:
    from torch import Tensor

    from tokbench.spec import Card, Option

Clip = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""

FRAME_RATE = 25
KEYFRAME_INTERVAL = 250
_PIXELS = MappingProxyType({"4:2:0": "yuv420p", "4:4:4": "yuv444p"})
_START_CODE = re.compile(rb"(?=\x00\x00\x00\x01|(?<!\x00)\x00\x00\x01)")


@dataclass(frozen=True)
class Encoder:
    """One encoder of FFmpeg and the stream it writes.

    Attributes:
        name: FFmpeg's name of the encoder.
        stream: FFmpeg's name of the raw stream format: Annex B, OBU (section 5) or IVF.
        settings: Options of the card and width to the encoder's own options.
        smallest: Shortest side it takes, in pixels.
        clean: What turns the written stream into the payload.
    """

    name: str
    stream: str
    settings: Callable[[Mapping[str, Option], int], dict[str, str]]
    smallest: int = 16
    clean: Callable[[bytes], bytes] = bytes


class VideoCodec:
    """A video codec behind encode and decode, at constant quality.

    `encode` takes (B, 3, T, H, W) in [0, 1], rounds it to 8 bits, converts it to limited-range BT.709 YCbCr, signalled in
    the stream, and encodes each clip on its own from a key frame; `decode` returns (B, 3, T, H, W) float32 on the CPU with
    exactly T frames. Encoders run on one thread, so a clip gives the same bytes every time.

    Raises:
        MissingExtra: PyAV was built without the encoder.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec
        self._options = card.options
        self._encoder = _ENCODERS[card.architecture["codec"]]
        self._pixels = _PIXELS[str(card.options.get("subsampling", "4:2:0"))]
        require_encoder(self._encoder.name, "video codecs")

    def encode(self, x: Tensor) -> Code:
        """Encode each clip to one elementary stream.

        Raises:
            UsageError: Not (B, 3, T, H, W).
            NotApplicable: A side is below the encoder's smallest, or odd where chroma is halved.
        """
        if x.ndim != 5:
            raise UsageError(f"{self.spec.name} takes (B, 3, T, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if min(height, width) < self._encoder.smallest:
            smallest = self._encoder.smallest
            raise NotApplicable(f"{self.spec.name} takes {smallest} pixels a side or more, got {height}x{width}")
        if self._pixels == "yuv420p" and (height % 2 or width % 2):
            raise NotApplicable(f"{self.spec.name} takes even sides (pad to spec.downsample), got {height}x{width}")
        return Code(payload=tuple(map_rows(self._write, list(to_8bit(x, self.spec.name)))))

    def decode(self, code: Code) -> Tensor:
        """Decode each stream: (B, 3, T, H, W) float32 in [0, 1], on the CPU.

        Raises:
            DecodeError: A stream of the payload cannot be read.
        """
        return from_8bit(map_rows(self._read, payload_of(code, self.spec.name)))

    def _write(self, clip: Clip) -> bytes:
        import av

        encoder, buffer = self._encoder, BytesIO()
        to_yuv = _converter(self._pixels)
        with av.open(buffer, "w", format=encoder.stream) as container:
            stream: Any = container.add_stream(encoder.name, rate=FRAME_RATE)
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt = self._pixels
            stream.options = {"g": str(KEYFRAME_INTERVAL), **encoder.settings(self._options, clip.shape[2])}
            context = stream.codec_context
            context.thread_count = 1
            context.color_range = av.video.reformatter.ColorRange.MPEG
            context.colorspace = av.video.reformatter.Colorspace.ITU709
            context.color_primaries = av.video.reformatter.ColorPrimaries.BT709
            context.color_trc = av.video.reformatter.ColorTrc.BT709
            for index, picture in enumerate(clip):
                frame = to_yuv(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return encoder.clean(buffer.getvalue())

    def _read(self, payload: bytes) -> Clip:
        import av

        to_rgb = _converter("rgb24")
        try:
            with av.open(BytesIO(payload), "r", format=self._encoder.stream) as container:
                container.streams.video[0].codec_context.thread_count = 1
                return np.stack([to_rgb(frame).to_ndarray() for frame in container.decode(video=0)])
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise DecodeError(f"{self.spec.name}: the payload is damaged: {error}") from error


def _converter(pixels: str) -> Callable[[Any], Any]:
    """Return a function that converts a frame between full-range RGB and limited-range BT.709 YCbCr.

    Bicubic chroma, accurate rounding and the bit-exact code path: without them swscale darkens a picture by about one level
    of 255 and loses 2 dB, and its full-range path is biased as well.
    """
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    how = (
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    )  # fmt: skip
    source, target = ColorRange.JPEG, ColorRange.MPEG
    if pixels == "rgb24":
        source, target = target, source

    def convert(frame: Any) -> Any:
        return reformatter.reformat(
            frame, format=pixels, src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709,
            src_color_range=source, dst_color_range=target, interpolation=how, threads=1,
        )  # fmt: skip

    return convert


def _x264(options: Mapping[str, Option], width: int) -> dict[str, str]:
    del width
    settings = "lookahead-threads=1"
    if platform.machine().lower() in {"x86_64", "amd64"}:
        # x264's AVX-512 macroblock tree reads uninitialised memory for clips narrower than 128 pixels, so that equal input
        # gives unequal bytes; its other code paths agree with each other to the bit.
        settings += ":asm=avx2"
    return {"crf": str(options["crf"]), "preset": str(options["preset"]), "x264-params": settings}


def _x265(options: Mapping[str, Option], width: int) -> dict[str, str]:
    # A picture one coding-tree unit wide makes x265 read uninitialised memory: unequal bytes from equal input.
    unit = 64 if width > 64 else 32
    settings = f"pools=none:frame-threads=1:wpp=0:info=0:log-level=none:ctu={unit}"
    return {"crf": str(options["crf"]), "preset": str(options["preset"]), "x265-params": settings}


def _svt_av1(options: Mapping[str, Option], width: int) -> dict[str, str]:
    del width
    # The library prints a banner to stderr for every clip unless told to report errors only, which it reads from here.
    os.environ.setdefault("SVT_LOG", "1")
    return {"crf": str(options["crf"]), "preset": str(options["preset"]), "svtav1-params": "lp=1"}


def _vp9(options: Mapping[str, Option], width: int) -> dict[str, str]:
    del width
    return {
        "crf": str(options["crf"]), "b": "0", "deadline": "good", "cpu-used": str(options["speed"]), "row-mt": "0",
    }  # fmt: skip


def _without_user_data(stream: bytes) -> bytes:
    """Drop the SEI messages of an H.264 Annex B stream that hold user data: x264's list of its settings, 0.6 kB a clip."""
    sei, unregistered_user_data = 6, 5
    units = _START_CODE.split(stream)
    return b"".join(unit for unit in units if _header(unit) != (sei, unregistered_user_data))


def _header(unit: bytes) -> tuple[int, int] | None:
    """Return the type of a NAL unit and the byte after its header, which for SEI is the type of the first message."""
    at = unit.find(b"\x01") + 1
    return (unit[at] & 0x1F, unit[at + 1]) if 0 < at < len(unit) - 1 else None


_ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "h264": Encoder("libx264", "h264", _x264, clean=_without_user_data),
        # Below 64 pixels x265 fails, or damages its own heap.
        "hevc": Encoder("libx265", "hevc", _x265, smallest=64),
        "av1": Encoder("libsvtav1", "obu", _svt_av1),
        "vp9": Encoder("libvpx-vp9", "ivf", _vp9),
    }
)
