"""Decodes image files with Pillow into 8-bit RGB and says what had to be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tokbench.data.types import Blob, Item, Raw
from tokbench.errors import DecodeError, install_command
from tokbench.spec import ImagePrepare

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970
"""Images of more pixels fail before a pixel is decoded: the size at which Pillow itself refuses."""

# A list, because Pillow also has readers that start other programs (EPS) or that guess without a signature.
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "JPEG2000": (".jp2", ".j2k"),
    "JXL": (".jxl",),
    "MPO": (".jpg", ".jpeg", ".jpe"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_ORIENTATION = 0x0112


def load_image(key: str, source: Blob | Raw, prepare: ImagePrepare, annotations: Mapping[str, object]) -> tuple[Item]:
    """Decode and prepare one image.

    Raises:
        DecodeError: The file cannot be read as an 8- or 16-bit image.
    """
    from PIL import Image

    from tokbench.prepare.image import apply_image

    notes: tuple[str, ...] = ()
    if isinstance(source, Raw):
        image = Image.fromarray(source.array)
    else:
        with source.open() as handle:
            image, notes = read_rgb(handle, source.extension)
    prepared = apply_image(image, prepare)
    return (
        Item(
            key=key,
            group=key,
            signal=prepared.signal,
            original=prepared.original,
            padding=prepared.padding,
            notes=notes,
            annotations=annotations,
        ),
    )


def read_rgb(handle: BinaryIO, extension: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Read the first frame of an image file as RGB, upright, on white where it is transparent; and what was changed.

    Raises:
        DecodeError: Not an image of a known format, truncated, too large, or of pixels without a known range.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(handle, formats=_readable(extension)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(_too_large(image.size))
            notes = [*_wrong_name(image, extension), *_frames(image)]
            deep = _sixteen_bit(image)
            image.load()
            upright = _upright(image, notes)
            return _to_rgb(upright, deep, notes), tuple(notes)
    except UnidentifiedImageError as error:
        raise DecodeError("is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"has more than the {MAX_PIXELS // 10**6} megapixels that are read") from error


def _readable(extension: str) -> tuple[str, ...]:
    # Importing a plugin registers its format; Image.init() would import all forty and take a quarter of a second.
    from PIL import (  # noqa: F401
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    names = tuple(name for name in _FORMATS if name != "JXL" and name in Image.OPEN)
    if extension != ".jxl":
        return names
    try:
        import pillow_jxl  # noqa: F401
    except ImportError as error:
        raise DecodeError(f"is JPEG XL, which needs an extra: {install_command('jxl')}") from error
    return ("JXL", *names)


def _too_large(size: tuple[int, int]) -> str:
    return f"has {size[0]}x{size[1]} pixels; at most {MAX_PIXELS // 10**6} megapixels are read"


def _wrong_name(image: Image.Image, extension: str) -> list[str]:
    name = image.format or ""
    known = extension in {suffix for suffixes in _FORMATS.values() for suffix in suffixes}
    return [f"named {extension} but holds {name}"] if known and extension not in _FORMATS.get(name, ()) else []


def _frames(image: Image.Image) -> list[str]:
    count = getattr(image, "n_frames", 1)
    return [f"first of {count} frames"] if count > 1 else []


def _sixteen_bit(image: Image.Image) -> bool:
    """Tell whether Pillow reads 16-bit colour into 8 bits, which it does by keeping the high byte."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(value, str) and ";16" in value for value in arguments[:1]):
            return image.mode in ("RGB", "RGBA", "LA", "CMYK")
    return False


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    from PIL import ImageOps

    try:
        turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
        upright = ImageOps.exif_transpose(image) if turned else image
    except Exception:  # Pillow lets struct, syntax and key errors of damaged EXIF blocks through
        notes.append("exif unreadable")
        return image
    if turned:
        notes.append("exif rotated")
    return upright


def _to_rgb(image: Image.Image, deep: bool, notes: list[str]) -> Image.Image:
    from PIL import Image

    mode = image.mode
    if mode == "F":
        raise DecodeError("has floating-point pixels, whose range is not known; convert it to 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        if "transparency" in image.info:
            notes.append("transparent colour of 16-bit grey ignored")
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("has 32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
        # 65535 = 255 * 257, so this is value * 255 / 65535 rounded half up.
        grey = ((values + 128) // 257).astype(np.uint8)
        notes.extend(("16-bit scaled to 8", "grey expanded"))
        return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    if deep:
        notes.append("16-bit cut to its high byte")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha composited on white")
            rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
        image = rgba
    if mode in ("1", "L", "LA", "La"):
        notes.append("grey expanded")
    elif mode not in ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA"):
        notes.append(f"{mode.lower()} converted")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DecodeError(f"has {mode} pixels, which cannot be converted to RGB") from error
