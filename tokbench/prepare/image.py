"""Named resize and crop presets for 8-bit RGB images, each pixel-exact to the code it is named after; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tokbench.errors import DecodeError, UsageError
from tokbench.spec import ImagePrepare

Padding = tuple[int, int, int, int]
"""Black columns and rows around an image: (left, top, right, bottom)."""

_FILTERS = {
    "pil-bicubic": Image.Resampling.BICUBIC,
    "pil-bilinear": Image.Resampling.BILINEAR,
    "pil-lanczos": Image.Resampling.LANCZOS,
}
_MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Prepared:
    """An image ready for a tokenizer.

    Attributes:
        signal: uint8 (3, H, W): the reference, except for `tokbench-pad`.
        original: uint8 (3, H, W) at the file's own size, where the reconstruction is brought back to it before any metric
            sees it (`tokbench-pad`); else None.
        padding: What `restore_image` cuts off again (`tokbench-pad`); else None.
    """

    signal: np.ndarray
    original: np.ndarray | None = None
    padding: Padding | None = None


def apply_image(image: Image.Image, prepare: ImagePrepare) -> Prepared:
    """Bring an RGB image to the size a protocol names. Images smaller than that are enlarged, as the originals do.

    | preset | resize | crop | used by |
    |---|---|---|---|
    | `adm` | BOX halving while the short side is at least 2 S, then BICUBIC, sides rounded half to even | `(n - S) // 2` | guided-diffusion `center_crop_arr`; LlamaGen, XQ-GAN, GigaTok, RAE, DC-AE |
    | `pil-bicubic` | short side to S, long side truncated | `int(round((n - S) / 2))` | torchvision `Resize` + `CenterCrop`; TiTok, MaskBit |
    | `pil-bilinear` | the same | the same | SEED-Voken, FlowMo, SimVQ, WeTok |
    | `pil-lanczos` | the same | the same | BSQ-ViT |
    | `lanczos-cover` | LANCZOS, short side to S, sides rounded half to even | `(n - S) // 2` | VTBench |
    | `tokbench-pad` | long side to S, LANCZOS, sides rounded up | none: centred on black, `(S - n) // 2` | TokBench (arXiv 2505.18142) `smart_padding` |
    | `native` | none | none | original-resolution tables |

    Args:
        image: Mode RGB, upright.
        prepare: The preset and its size S in pixels.

    Raises:
        UsageError: The image is not RGB, or the size does not go with the preset.
        DecodeError: The image is so narrow that resizing its short side makes more than 178 megapixels.
    """  # noqa: E501 - a table row cannot be wrapped
    if image.mode != "RGB":
        raise UsageError(f"prepare takes RGB images, got mode {image.mode}; convert it first")
    size = prepare.size
    if prepare.preset == "native":
        if size is not None:
            raise UsageError(f"preset native keeps each image's own size; remove size = {size}")
        return Prepared(_planes(image))
    if size is None or size < 1:
        raise UsageError(f"preset {prepare.preset} needs a size of at least 1 pixel, got {size}")
    match prepare.preset:
        case "adm":
            return Prepared(_planes(_adm(image, size)))
        case "pil-bicubic" | "pil-bilinear" | "pil-lanczos":
            return Prepared(_planes(_short_side(image, size, _FILTERS[prepare.preset])))
        case "lanczos-cover":
            return Prepared(_planes(_cover(image, size, Image.Resampling.LANCZOS)))
        case "tokbench-pad":
            signal, padding = _pad(image, size)
            return Prepared(_planes(signal), _planes(image), padding)
    raise UsageError(
        f"unknown resize preset {prepare.preset!r}; known: adm, {', '.join(_FILTERS)}, lanczos-cover, tokbench-pad, native"
    )


def restore_image(reconstruction: np.ndarray, padding: Padding, original_size: tuple[int, int]) -> np.ndarray:
    """Undo `tokbench-pad`: cut the black border off and resize with LANCZOS to the file's own size.

    Args:
        reconstruction: uint8 (3, S, S), or (3, T, S, S) for video, frame by frame.
        padding: As `apply_image` returned it.
        original_size: (H, W) in pixels.

    Returns:
        uint8 (3, H, W) or (3, T, H, W).

    Raises:
        UsageError: `reconstruction` is not uint8 of that shape, or nothing is left inside the padding.
    """
    if reconstruction.dtype != np.uint8 or reconstruction.ndim not in (3, 4) or reconstruction.shape[0] != 3:
        raise UsageError(
            f"restore takes uint8 (3, S, S) or (3, T, S, S), got {reconstruction.dtype} {reconstruction.shape}"
        )
    if reconstruction.ndim == 4:
        return np.stack(
            [restore_image(frame, padding, original_size) for frame in reconstruction.swapaxes(0, 1)], axis=1
        )
    left, top, right, bottom = padding
    height, width = reconstruction.shape[1] - bottom, reconstruction.shape[2] - right
    if min(padding) < 0 or left >= width or top >= height:
        raise UsageError(f"padding {padding} leaves nothing of an image of {reconstruction.shape[1:]}")
    inner = Image.fromarray(np.ascontiguousarray(reconstruction[:, top:height, left:width].transpose(1, 2, 0)))
    return _planes(inner.resize((original_size[1], original_size[0]), Image.Resampling.LANCZOS))


def _adm(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return _cover(image, size, Image.Resampling.BICUBIC)


def _cover(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    scale = size / min(image.size)
    image = _resize(image, round(image.width * scale), round(image.height * scale), how)
    return _crop(image, (image.width - size) // 2, (image.height - size) // 2, size)


def _short_side(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    short, long = sorted(image.size)
    other = int(size * long / short)
    width, height = (size, other) if image.width <= image.height else (other, size)
    image = _resize(image, width, height, how)
    return _crop(image, round((width - size) / 2.0), round((height - size) / 2.0), size)


def _pad(image: Image.Image, size: int) -> tuple[Image.Image, Padding]:
    ratio = min(size / image.width, size / image.height)
    # Rounding up in floating point can pass S by one where S is no power of two; the published sizes are.
    width, height = (min(size, math.ceil(side * ratio)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    canvas = Image.new("RGB", (size, size), (0, 0, 0))
    canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return canvas, (left, top, size - width - left, size - height - top)


def _resize(image: Image.Image, width: int, height: int, how: Image.Resampling) -> Image.Image:
    if width * height > _MAX_PIXELS:
        raise DecodeError(
            f"is {image.width}x{image.height} pixels: too narrow to resize its short side "
            f"(that makes {width}x{height}, more than {_MAX_PIXELS // 10**6} megapixels)"
        )
    return image.resize((width, height), how)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _planes(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
