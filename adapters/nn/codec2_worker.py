"""Decodes one Codec2 stream as a program of its own: `python codec2_worker.py MODE < frames > samples`.

The library draws the phases of unvoiced sound from a generator that belongs to the process and cannot be set back. In a fresh
process it starts the same way each time, so a stream decodes to the same samples wherever and whenever it is decoded.
"""

from __future__ import annotations

import sys


def main(mode: int) -> None:
    """Read whole frames of bytes from the standard input and write 16-bit little-endian samples at 8 kHz."""
    import numpy as np
    import pycodec2

    codec = pycodec2.Codec2(mode)
    frames = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(-1, codec.bytes_per_frame())
    for frame in frames:
        sys.stdout.buffer.write(codec.decode(frame.tobytes()).astype("<i2").tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
