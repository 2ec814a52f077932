"""Image codecs as tokenizers: the payload of a row is the smallest complete file of that picture, and all of it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokbench.errors import DecodeError, MissingExtra, NotApplicable, UsageError, install_command
from tokbench.types import Code

from .nn.classical import from_8bit, map_rows, payload_of, to_8bit

if TYPE_CHECKING:
    from torch import Tensor

    from tokbench.spec import Card, Option

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass(frozen=True)
class Format:
    """How one file format is written and read.

    Attributes:
        write: Picture and options of the card to a file's bytes.
        read: A file's bytes to the picture.
        largest: Longest side the format can hold, in pixels; None where no real picture reaches it.
    """

    write: Callable[[Picture, Mapping[str, Option]], bytes]
    read: Callable[[bytes], Picture]
    largest: int | None = None


class ImageCodec:
    """An image codec behind encode and decode.

    `encode` takes (B, 3, H, W) in [0, 1], rounds it to 8 bits (exact for 8-bit pictures) and writes a file a row; `decode`
    reads them and returns (B, 3, H, W) float32 on the CPU. Any size from 1x1; rows are independent and deterministic.

    Raises:
        MissingExtra: The codec's library is not installed, or was built without this format.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec
        self._options = card.options
        self._format = _FORMATS[card.architecture["codec"]]
        _require(card.architecture["codec"])

    def encode(self, x: Tensor) -> Code:
        """Write one file a row.

        Raises:
            UsageError: Not (B, 3, H, W).
            NotApplicable: The picture is larger than the format allows, or holds NaN.
        """
        if x.ndim != 4:
            raise UsageError(f"{self.spec.name} takes (B, 3, H, W), got {tuple(x.shape)}")
        largest = self._format.largest
        if largest is not None and max(x.shape[-2:]) > largest:
            raise NotApplicable(f"{self.spec.name} holds at most {largest} pixels a side, got {tuple(x.shape[-2:])}")
        pictures = list(to_8bit(x, self.spec.name))
        return Code(payload=tuple(map_rows(lambda picture: self._format.write(picture, self._options), pictures)))

    def decode(self, code: Code) -> Tensor:
        """Read the files back: (B, 3, H, W) float32 in [0, 1], on the CPU.

        Raises:
            DecodeError: A file of the payload cannot be read.
        """
        return from_8bit(map_rows(self._read, payload_of(code, self.spec.name)))

    def _read(self, file: bytes) -> Picture:
        try:
            return self._format.read(file)
        except (OSError, SyntaxError, ValueError, RuntimeError) as error:
            raise DecodeError(f"{self.spec.name}: the payload is damaged: {error}") from error


def _pillow(name: str, settings: Callable[[Mapping[str, Option]], dict[str, Any]]) -> Format:
    def write(picture: Picture, options: Mapping[str, Option]) -> bytes:
        from PIL import Image

        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, format=name, **settings(options))
        return buffer.getvalue()

    return Format(write, _pillow_reader(name))


def _pillow_reader(name: str) -> Callable[[bytes], Picture]:
    def read(file: bytes) -> Picture:
        from PIL import Image

        with Image.open(BytesIO(file), formats=(name,)) as image:
            return np.array(image.convert("RGB"))

    return read


def _jpeg(options: Mapping[str, Option]) -> dict[str, Any]:
    return {"quality": options["quality"], "subsampling": options["subsampling"], "optimize": True}


def _webp(options: Mapping[str, Option]) -> dict[str, Any]:
    return {"quality": options["quality"], "method": options["method"]}


def _webp_lossless(options: Mapping[str, Option]) -> dict[str, Any]:
    return {"lossless": True, "quality": options["effort"], "method": options["method"]}


def _avif(options: Mapping[str, Option]) -> dict[str, Any]:
    return {
        "quality": options["quality"],
        "subsampling": options["subsampling"],
        "speed": options["speed"],
        "codec": "aom",
        "range": "full",
        "max_threads": 1,
        "autotiling": False,
    }


def _write_jpeg2000(picture: Picture, options: Mapping[str, Option]) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    # Pillow leaves the colour transform off unless asked (mct=0): 1.8 times the rate at 40 dB on a portrait.
    Image.fromarray(picture).save(
        buffer, format="JPEG2000", no_jp2=True, irreversible=True, mct=1,
        quality_mode="dB", quality_layers=[float(options["psnr"])],
    )  # fmt: skip
    return _without_comment(buffer.getvalue())


def _without_comment(codestream: bytes) -> bytes:
    """Drop the COM segments (the library's name) from the main header of a JPEG 2000 codestream, ITU-T T.800 annex A."""
    comment, start_of_tile, at = b"\xff\x64", b"\xff\x90", 2
    kept = [codestream[:at]]
    while (marker := codestream[at : at + 2]) != start_of_tile:
        end = at + 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
        if marker != comment:
            kept.append(codestream[at:end])
        at = end
    return b"".join([*kept, codestream[at:]])


def _jxl(*, lossless: bool) -> Format:
    def write(picture: Picture, options: Mapping[str, Option]) -> bytes:
        import pillow_jxl

        height, width, _ = picture.shape
        make: Any = pillow_jxl.Encoder  # its stub lags behind its arguments
        encoder = make(
            mode="RGB", lossless=lossless, quality=100 if lossless else options["quality"], decoding_speed=0,
            effort=options["effort"], use_container=False, use_original_profile=lossless, num_threads=0,
        )  # fmt: skip
        return bytes(encoder(picture.tobytes(), width, height, jpeg_encode=False))

    return Format(write, _read_jxl)


def _read_jxl(file: bytes) -> Picture:
    import pillow_jxl

    make: Any = pillow_jxl.Decoder  # its stub lags behind its results
    _, info, pixels, *_ = make(num_threads=0)(file)
    return np.frombuffer(pixels, np.uint8).reshape(info.height, info.width, 3)


def _require(codec: str) -> None:
    if codec in {"jxl", "jxl-lossless"}:
        try:
            import pillow_jxl  # noqa: F401
        except ImportError as error:
            raise MissingExtra("JPEG XL needs pillow-jxl-plugin", install_command("jxl")) from error
        return
    from PIL import features

    feature = {"jpeg": "jpg", "webp": "webp", "webp-lossless": "webp", "avif": "avif", "jpeg2000": "jpg_2000"}[codec]
    if not features.check(feature):
        raise MissingExtra(f"this Pillow was built without {codec}", "pip install --force-reinstall pillow")


def _limited(form: Format, largest: int) -> Format:
    return Format(form.write, form.read, largest)


_FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "jpeg": _limited(_pillow("JPEG", _jpeg), 65_500),
        "webp": _limited(_pillow("WEBP", _webp), 16_383),
        "webp-lossless": _limited(_pillow("WEBP", _webp_lossless), 16_383),
        "avif": _limited(_pillow("AVIF", _avif), 65_536),
        "jpeg2000": Format(_write_jpeg2000, _pillow_reader("JPEG2000")),
        "jxl": _jxl(lossless=False),
        "jxl-lossless": _jxl(lossless=True),
    }
)
