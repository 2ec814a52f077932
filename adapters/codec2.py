"""Codec2, a parametric speech codec of 0.7 to 3.2 kbit/s, as a tokenizer: the floor that runs without any weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokbench.errors import DecodeError
from tokbench.types import Code

from .nn.checkpoint import library
from .nn.classical import map_rows, payload_of, sound_rows

if TYPE_CHECKING:
    from tokbench.spec import Card

_WORKER = Path(__file__).parent / "nn" / "codec2_worker.py"
_LENGTH_BYTES = 4


class Codec2:
    """Codec2 at one mode, 8 kHz mono.

    A payload is the number of samples (4 bytes) and the frames' bits, joined without gaps. What is decoded is cut to that
    number after the codec's delay (`card.architecture["delay"]`, in samples, measured on envelopes of speech). The library's
    decoder draws random phases from a generator of its process, so each row is decoded in a process of its own, which costs
    about 0.1 s.

    Raises:
        MissingExtra: pycodec2 is not installed.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec
        (self._kind,) = library("pycodec2", ["Codec2"], card.name, card.extra or "audio")
        mode = str(card.options["mode"])
        self._mode = int(mode.removesuffix("C"))
        delays = card.architecture["delay"]
        self._delay = int(delays.get(mode, delays["other"]))
        codec = self._kind(self._mode)
        self._size, self._bits = int(codec.samples_per_frame()), int(codec.bits_per_frame())

    def encode(self, x: Tensor) -> Code:
        """Encode each row of (B, 1, T) in [-1, 1] at 8 kHz to one payload.

        Raises:
            UsageError: Not (B, C, T).
            NotApplicable: More than one channel, or NaN in the signal.
        """
        return Code(payload=tuple(map_rows(self._write, [row[0] for row in sound_rows(x, self.spec.name, {1})])))

    def decode(self, code: Code) -> Tensor:
        """Decode each payload: (B, 1, T) float32 on the CPU.

        Raises:
            DecodeError: A payload cannot be read.
        """
        rows = map_rows(self._read, payload_of(code, self.spec.name))
        return torch.from_numpy(np.stack(rows))[:, None]

    def _write(self, sound: NDArray[np.float32]) -> bytes:
        codec: Any = self._kind(self._mode)
        count = self._frames(len(sound))
        padded = np.zeros(count * self._size, np.int16)
        padded[: len(sound)] = np.clip(np.rint(sound * 32768.0), -32768, 32767)
        frames = [codec.encode(frame) for frame in padded.reshape(count, self._size)]
        bits = np.unpackbits(np.frombuffer(b"".join(frames), np.uint8).reshape(count, -1), axis=1)[:, : self._bits]
        return len(sound).to_bytes(_LENGTH_BYTES, "little") + np.packbits(bits.reshape(-1)).tobytes()

    def _read(self, payload: bytes) -> NDArray[np.float32]:
        length = int.from_bytes(payload[:_LENGTH_BYTES], "little")
        count = self._frames(length)
        body = np.frombuffer(payload[_LENGTH_BYTES:], np.uint8)
        if len(payload) < _LENGTH_BYTES or len(body) != -(-count * self._bits // 8):
            raise DecodeError(f"{self.spec.name}: the payload is damaged: {len(payload)} bytes for {length} samples")
        bits = np.unpackbits(body)[: count * self._bits].reshape(count, self._bits)
        done = subprocess.run(
            [sys.executable, "-I", str(_WORKER), str(self._mode)],
            input=np.packbits(bits, axis=1).tobytes(),
            capture_output=True,
            check=False,
        )
        sound: NDArray[np.float32] = np.frombuffer(done.stdout, "<i2").astype(np.float32) / np.float32(32768)
        if done.returncode or len(sound) < self._delay + length:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise DecodeError(f"{self.spec.name}: the decoder stopped after {len(sound)} samples: {said}")
        return sound[self._delay : self._delay + length]

    def _frames(self, length: int) -> int:
        return -(-(length + self._delay) // self._size)
