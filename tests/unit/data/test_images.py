"""Image files become the RGB a viewer shows, and say what was changed."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokbench.data import Failure, Item, load, open_source
from tokbench.spec import ImagePrepare

NATIVE = ImagePrepare(preset="native", size=None)


def read(path: Path, prepare: ImagePrepare = NATIVE) -> Item:
    source = open_source(str(path), "image")
    (item,) = load(source, source.keys()[0], prepare)
    assert isinstance(item, Item), item
    return item


def channels_last(item: Item) -> np.ndarray:
    return item.signal.transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.TIFF"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    Image.fromarray(photo).save(tmp_path / name)
    item = read(tmp_path / name)
    assert item.key == item.group == name
    assert item.signal.dtype == np.uint8
    np.testing.assert_array_equal(channels_last(item), photo)
    assert item.notes == ()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif", "a.jp2"])
def test_lossy_formats_decode_as_pillow_does(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    Image.fromarray(photo).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(channels_last(read(tmp_path / name)), np.asarray(image.convert("RGB")))


def test_jpeg_xl_is_read_when_the_extra_is_there(tmp_path: Path, photo: np.ndarray) -> None:
    pytest.importorskip("pillow_jxl")
    Image.fromarray(photo).save(tmp_path / "a.jxl", lossless=True)
    np.testing.assert_array_equal(channels_last(read(tmp_path / "a.jxl")), photo)


@pytest.mark.parametrize(("orientation", "turn"), [(6, -1), (3, 2), (8, 1)])
def test_exif_orientation_is_applied(tmp_path: Path, photo: np.ndarray, orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    item = read(tmp_path / "a.png")
    np.testing.assert_array_equal(channels_last(item), np.rot90(photo, turn))
    assert item.notes == ("exif rotated",)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    np.testing.assert_array_equal(channels_last(read(tmp_path / "a.png")), photo)


def test_alpha_is_composited_on_white(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "a.png")
    item = read(tmp_path / "a.png")
    weight = alpha[..., None] / 255
    expected = photo * weight + 255 * (1 - weight)
    assert np.abs(channels_last(item) - expected).max() <= 1
    assert (channels_last(item)[:10] == 255).all()
    np.testing.assert_array_equal(channels_last(item)[20:], photo[20:])
    assert item.notes == ("alpha composited on white",)


def test_opaque_alpha_changes_nothing_and_says_nothing(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).convert("RGBA").save(tmp_path / "a.png")
    item = read(tmp_path / "a.png")
    np.testing.assert_array_equal(channels_last(item), photo)
    assert item.notes == ()


def test_palette_transparency_and_grey_alpha_are_white(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (4, 0, 8, 8))
    palette.save(tmp_path / "p.png", transparency=0)
    item = read(tmp_path / "p.png")
    assert (item.signal[:, :, :4] == 255).all()
    assert item.signal[:, 0, 7].tolist() == [200, 100, 50]
    assert item.notes == ("alpha composited on white",)
    Image.new("LA", (8, 8), (90, 0)).save(tmp_path / "la.png")
    assert (read(tmp_path / "la.png").signal == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65407, 65535]], np.uint16).repeat(
        4, 0
    )
    Image.fromarray(values).save(tmp_path / name)
    item = read(tmp_path / name)
    expected = np.floor(values / 65535 * 255 + 0.5)
    for plane in item.signal:
        np.testing.assert_array_equal(plane, expected)
    assert "16-bit scaled to 8" in item.notes


def test_sixteen_bit_colour_says_what_pillow_does(tmp_path: Path) -> None:
    values = np.random.Generator(np.random.PCG64(1)).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    item = read(tmp_path / "a.png")
    np.testing.assert_array_equal(channels_last(item), values >> 8)
    assert item.notes == ("16-bit cut to its high byte",)


def test_cmyk_is_converted_and_noted(tmp_path: Path, photo: np.ndarray) -> None:
    cmyk = Image.fromarray(photo).convert("CMYK")
    cmyk.save(tmp_path / "a.tif")
    item = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(channels_last(item), np.asarray(cmyk.convert("RGB")))
    assert item.notes == ("cmyk converted",)
    cmyk.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(channels_last(read(tmp_path / "a.jpg")).astype(int) - photo).mean() < 20


def test_grey_is_expanded(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[..., 0]).save(tmp_path / "a.png")
    item = read(tmp_path / "a.png")
    np.testing.assert_array_equal(item.signal, np.repeat(photo[None, ..., 0], 3, 0))
    assert item.notes == ("grey expanded",)


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    item = read(tmp_path / "a.webp")
    assert item.signal[:, 0, 0].tolist() == [250, 0, 0]
    assert item.notes == ("first of 3 frames",)


def test_the_content_counts_not_the_name(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", format="JPEG", quality=95)
    item = read(tmp_path / "a.png")
    assert item.signal.shape == (3, 40, 56)
    assert item.notes == ("named .png but holds JPEG",)


def test_formats_that_start_other_programs_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    source = open_source(str(tmp_path), "image")
    (failure,) = load(source, "a.png", NATIVE)
    assert isinstance(failure, Failure)
    assert failure.reason == "is not an image of a known format"


def test_float_pixels_have_no_range(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    source = open_source(str(tmp_path), "image")
    (failure,) = load(source, "a.tif", NATIVE)
    assert isinstance(failure, Failure)
    assert "floating-point" in failure.reason


def test_tokbench_pad_keeps_the_original(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    item = read(tmp_path / "a.png", ImagePrepare(preset="tokbench-pad", size=32))
    assert item.signal.shape == (3, 32, 32)
    assert item.original is not None
    np.testing.assert_array_equal(item.original.transpose(1, 2, 0), photo)
    assert item.padding is not None
    left, top, right, bottom = item.padding
    assert (left, right) == (0, 0)
    assert (item.signal[:, :top] == 0).all()
    assert (item.signal[:, 32 - bottom :] == 0).all()
    assert top + bottom == 32 - 23


def test_a_stream_of_bytes_needs_no_file(photo: np.ndarray) -> None:
    from tokbench.data.image import read_rgb

    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    buffer.seek(0)
    image, notes = read_rgb(buffer, "")
    np.testing.assert_array_equal(np.asarray(image), photo)
    assert notes == ()
