"""Audio codecs as tokenizers: delay-free, length-exact, and with every byte a receiver needs in the payload."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokbench.errors import DecodeError, NotApplicable, UsageError
from tokbench.types import Code, Stream

from .nn.classical import map_rows, payload_of, require_encoder, sound_rows

if TYPE_CHECKING:
    from tokbench.spec import Card, Option

Sound = NDArray[np.float32]
"""(C, T) in [-1, 1]."""


@dataclass(frozen=True)
class Coder:
    """One encoder and decoder of FFmpeg and what stands in front of their packets.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        decoder: FFmpeg's name of the decoder.
        sample_format: What the encoder takes: `flt` is interleaved, `fltp` planar.
        settings: Options of the card to the encoder's own options; the bit rate is set apart.
        delay: Samples the encoder puts in front of the signal.
        trimmed: The decoder removes them itself.
        head: The encoder's extradata to what a receiver needs of it; its length is fixed.
        extradata: That head to the decoder's extradata.
        head_size: Length of the head in bytes.
        framed: Packets need their length in front of them; False: a packet's own header tells it.
    """

    encoder: str
    decoder: str
    sample_format: str
    settings: Callable[[Mapping[str, Option]], dict[str, str]]
    delay: int
    trimmed: bool
    head: Callable[[bytes], bytes]
    extradata: Callable[[bytes], bytes]
    head_size: int
    framed: bool


class AudioCodec:
    """An audio codec behind encode and decode.

    `encode` takes (B, C, T) float32 at `spec.sample_rate`, C = 1 or 2; `decode` returns exactly (B, C, T) float32 on the
    CPU with the codec's delay removed. A payload is: the number of samples T (LEB128), the codec's head (a few bytes), then
    the packets, each after its length (LEB128) unless its own header tells it. Rows are independent and deterministic.

    Raises:
        MissingExtra: PyAV was built without the encoder.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec
        self._options = card.options
        self._coder = _CODERS[card.architecture["codec"]]
        self._rate = card.spec.sample_rate or 48_000
        require_encoder(self._coder.encoder, "audio codecs")

    def encode(self, x: Tensor) -> Code:
        """Encode each row to one payload.

        Raises:
            UsageError: Not (B, C, T).
            NotApplicable: More than two channels, or NaN in the signal.
        """
        return Code(payload=tuple(map_rows(self._write, sound_rows(x, self.spec.name, {1, 2}))))

    def decode(self, code: Code) -> Tensor:
        """Decode each payload: (B, C, T) float32 on the CPU; clipped sound may leave [-1, 1] by a little.

        Raises:
            DecodeError: A payload cannot be read.
        """
        rows = map_rows(self._read, payload_of(code, self.spec.name))
        return torch.from_numpy(np.stack(rows))

    def _write(self, sound: Sound) -> bytes:
        import av

        coder, length = self._coder, sound.shape[1]
        context: Any = av.CodecContext.create(coder.encoder, "w")
        context.sample_rate, context.format = self._rate, coder.sample_format
        context.layout = "mono" if len(sound) == 1 else "stereo"
        context.bit_rate = int(self._options["bitrate"]) * 1000
        context.options = coder.settings(self._options)
        context.thread_count = 1
        context.open()
        size = context.frame_size
        count = -(-(length + coder.delay) // size)
        padded = np.zeros((len(sound), count * size), np.float32)
        padded[:, :length] = sound
        packets: list[bytes] = []
        for start in range(0, count * size, size):
            packets += map(bytes, context.encode(self._frame(padded[:, start : start + size], start)))
        packets += map(bytes, context.encode(None))
        # Draining makes the encoder append silence; the first `count` packets already hold the whole signal.
        body = (_varint(len(packet)) + packet if coder.framed else packet for packet in packets[:count])
        return b"".join([_varint(length), coder.head(context.extradata or b""), *body])

    def _frame(self, chunk: Sound, start: int) -> Any:
        import av

        planar = self._coder.sample_format.endswith("p")
        samples = np.ascontiguousarray(chunk if planar else chunk.T.reshape(1, -1))
        layout = "mono" if len(chunk) == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(samples, format=self._coder.sample_format, layout=layout)
        frame.sample_rate, frame.pts = self._rate, start
        return frame

    def _read(self, payload: bytes) -> Sound:
        import av

        coder = self._coder
        try:
            length, at = _read_varint(payload, 0)
            head, body = payload[at : at + coder.head_size], payload[at + coder.head_size :]
            if len(head) < coder.head_size:
                raise ValueError("its head is cut short")
            context: Any = av.CodecContext.create(coder.decoder, "r")
            context.thread_count = 1
            context.options = {"request_sample_fmt": "flt"}
            if coder.head_size:
                context.extradata = coder.extradata(head)
            packets = map(av.Packet, _unframe(body)) if coder.framed else context.parse(body) + context.parse(None)
            frames = [frame for packet in packets for frame in context.decode(packet)] + context.decode(None)
            sound = np.concatenate([_samples(frame) for frame in frames], axis=1)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise DecodeError(f"{self.spec.name}: the payload is damaged: {error}") from error
        start = 0 if coder.trimmed else coder.delay
        if sound.shape[1] < start + length:
            raise DecodeError(f"{self.spec.name}: the payload ends after {sound.shape[1]} samples of {start + length}")
        return sound[:, start : start + length]


class MuLaw:
    """G.711 µ-law: 8 bits a sample, at any sample rate and any number of channels.

    `encode` takes (B, C, T) in [-1, 1], 1.0 being G.711's full scale of 8192, and gives one stream of (B, C, T) indices:
    the octets as they are transmitted (inverted bits, 255 is +0). Louder samples saturate at 8031 / 8192. Both ways are
    elementwise and run on the device of the input.

    Reference: ITU-T G.711 (11/88), tables 2a and 2b.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec

    def encode(self, x: Tensor) -> Code:
        """Return one stream of octets, shape (B, C, T).

        Raises:
            UsageError: Not (B, C, T).
            NotApplicable: A value is not finite.
        """
        if x.ndim != 3:
            raise UsageError(f"{self.spec.name} takes (B, C, T), got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise NotApplicable(f"{self.spec.name} cannot encode NaN or infinity")
        x = x.to(torch.float32)
        # Adding 33 makes the 8 segments the 8 octaves from 2^5 to 2^13, each of 16 equal steps.
        biased = (x.abs() * 8192 + 33).clamp(max=8191)
        _, exponent = torch.frexp(biased)
        segment = exponent - 6
        step = torch.floor(torch.ldexp(biased, -(segment + 1))) - 16
        sign = (x < 0).to(torch.int64) << 7
        octet = 255 - (sign | (segment.to(torch.int64) << 4) | step.to(torch.int64))
        return Code(streams=(Stream(codebook="g711-mulaw", codebook_size=256, indices=octet),))

    def decode(self, code: Code) -> Tensor:
        """Return (B, C, T) float32, the middle of each octet's interval.

        Raises:
            UsageError: The code is not one stream of octets.
        """
        if len(code.streams) != 1 or code.streams[0].codebook_size != 256:
            raise UsageError(f"{self.spec.name} decodes one stream of 256 entries")
        octet = 255 - code.streams[0].indices
        segment, step = (octet >> 4) & 7, octet & 15
        magnitude = ((2 * step + 33) << segment) - 33
        return torch.where(octet >= 128, -magnitude, magnitude).to(torch.float32) / 8192


def _samples(frame: Any) -> Sound:
    samples: Sound = frame.to_ndarray()
    if samples.dtype != np.float32:
        raise ValueError(f"the decoder gives {frame.format.name}, not float samples")
    return samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _varint(value: int) -> bytes:
    """Spell a non-negative integer in LEB128: 7 bits a byte, the high bit saying that another follows."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _unframe(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        size, at = _read_varint(body, at)
        if at + size > len(body):
            raise ValueError("a packet is cut short")
        yield body[at : at + size]
        at += size


def _opus(options: Mapping[str, Option]) -> dict[str, str]:
    return {
        "vbr": str(options["vbr"]), "application": str(options["application"]),
        "compression_level": "10", "frame_duration": "20",
    }  # fmt: skip


def _opus_head(extradata: bytes) -> bytes:
    """Keep the channel count and the pre-skip of an OpusHead, RFC 7845 section 5.1; the rest never changes here."""
    return extradata[9:12]


def _opus_extradata(head: bytes) -> bytes:
    channels, pre_skip = struct.unpack("<BH", head)
    return struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, pre_skip, 48_000, 0, 0)


def _mp3(options: Mapping[str, Option]) -> dict[str, str]:
    return {"joint_stereo": "1", "compression_level": str(options["effort"])}


def _aac(options: Mapping[str, Option]) -> dict[str, str]:
    del options
    return {"profile": "aac_low", "aac_coder": "twoloop"}


def _aac_head(extradata: bytes) -> bytes:
    """Keep the two bytes of an AudioSpecificConfig that say object type, rate and channels; the rest says "no SBR"."""
    return extradata[:2]


def _nothing(data: bytes) -> bytes:
    del data
    return b""


_CODERS: Mapping[str, Coder] = MappingProxyType(
    {
        "opus": Coder(
            "libopus", "libopus", "flt", _opus, delay=312, trimmed=True,
            head=_opus_head, extradata=_opus_extradata, head_size=3, framed=True,
        ),
        # LAME's own 576 samples and the 529 of the decoder's filter bank.
        "mp3": Coder(
            "libmp3lame", "mp3float", "fltp", _mp3, delay=1105, trimmed=False,
            head=_nothing, extradata=_nothing, head_size=0, framed=False,
        ),
        "aac": Coder(
            "aac", "aac", "fltp", _aac, delay=1024, trimmed=False,
            head=_aac_head, extradata=bytes, head_size=2, framed=True,
        ),
    }
)  # fmt: skip
