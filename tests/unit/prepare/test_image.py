from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tokbench.errors import DecodeError, UsageError
from tokbench.prepare.image import apply_image, restore_image
from tokbench.spec import ImagePrepare

SIZES = [
    (64, 64),
    (65, 64),
    (64, 65),
    (97, 61),
    (61, 97),
    (150, 203),
    (259, 130),
    (20, 33),
    (33, 20),
    (127, 128),
    (300, 41),
]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.linspace(0, 180, width)[None, :, None] + np.zeros((height, 1, 3))
    noise = rng.integers(0, 75, (height, width, 3))
    return Image.fromarray((smooth + noise).astype(np.uint8))


def planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos"])
def test_pil_presets_are_torchvision_on_pil_to_the_bit(shape: tuple[int, int], size: int, name: str) -> None:
    from torchvision import transforms

    image = picture(*shape)
    mode = transforms.InterpolationMode[name.upper()]
    theirs = transforms.Compose([transforms.Resize(size, interpolation=mode), transforms.CenterCrop(size)])(image)
    mine = apply_image(image, ImagePrepare(f"pil-{name}", size))  # type: ignore[arg-type]
    assert mine.signal.dtype == np.uint8
    assert mine.signal.shape == (3, size, size)
    assert mine.signal.flags.c_contiguous
    assert mine.original is None
    assert mine.padding is None
    np.testing.assert_array_equal(mine.signal, planes(theirs))


def adm_restated(image: Image.Image, size: int) -> np.ndarray:
    """The rule of guided-diffusion in exact arithmetic: halvings counted beforehand, sides as fractions, crop on the array."""
    halvings = 0
    while (min(image.size) >> halvings) >= 2 * size:
        halvings += 1
    for step in range(1, halvings + 1):
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
        assert image.size[0] >= size, step
    short = min(image.size)
    sides = tuple(round(Fraction(side * size, short)) for side in image.size)
    array = np.asarray(image.resize(sides, Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size].transpose(2, 0, 1)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [16, 31, 32, 64])
def test_adm_follows_the_rule_of_guided_diffusion(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape)
    mine = apply_image(image, ImagePrepare("adm", size)).signal
    assert mine.shape == (3, size, size)
    np.testing.assert_array_equal(mine, adm_restated(image, size))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [16, 33, 64])
def test_lanczos_cover_follows_the_rule_of_vtbench(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape)
    short = min(image.size)
    sides = tuple(round(Fraction(side * size, short)) for side in image.size)
    array = np.asarray(image.resize(sides, Image.Resampling.LANCZOS))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    mine = apply_image(image, ImagePrepare("lanczos-cover", size)).signal
    np.testing.assert_array_equal(mine, array[y : y + size, x : x + size].transpose(2, 0, 1))


def test_adm_halves_by_box_averages_before_bicubic() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    big = np.repeat(np.repeat(blocks, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(
        apply_image(Image.fromarray(big), ImagePrepare("adm", 32)).signal, blocks.transpose(2, 0, 1)
    )
    bicubic = apply_image(Image.fromarray(big), ImagePrepare("pil-bicubic", 32)).signal
    assert (bicubic != blocks.transpose(2, 0, 1)).any()


def test_adm_and_torchvision_crop_odd_margins_at_different_pixels() -> None:
    columns = np.zeros((32, 35, 3), np.uint8)
    columns[:, :, :] = np.arange(35, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(columns)
    assert apply_image(image, ImagePrepare("adm", 32)).signal[0, 0, 0] == 1  # 3 // 2
    assert apply_image(image, ImagePrepare("pil-bicubic", 32)).signal[0, 0, 0] == 2  # round(1.5)
    assert apply_image(image, ImagePrepare("lanczos-cover", 32)).signal[0, 0, 0] == 1
    assert apply_image(image, ImagePrepare("pil-lanczos", 32)).signal[0, 0, 0] == 2


@pytest.mark.parametrize(
    "shape", [(200, 100), (100, 200), (640, 427), (427, 640), (64, 64), (30, 17), (256, 1), (51, 50)]
)
@pytest.mark.parametrize("size", [64, 96])
def test_tokbench_pad_centres_the_lanczos_image_on_black(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape)
    prepared = apply_image(image, ImagePrepare("tokbench-pad", size))
    long = max(shape)
    scaled = tuple(-(-side * size // long) for side in shape)  # rounded up
    inner = np.asarray(image.resize(scaled, Image.Resampling.LANCZOS))
    left, top = (size - scaled[0]) // 2, (size - scaled[1]) // 2
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[top : top + scaled[1], left : left + scaled[0]] = inner
    np.testing.assert_array_equal(prepared.signal, canvas.transpose(2, 0, 1))
    np.testing.assert_array_equal(prepared.original, planes(image))
    assert prepared.padding == (left, top, size - scaled[0] - left, size - scaled[1] - top)

    back = restore_image(prepared.signal, prepared.padding, (shape[1], shape[0]))
    np.testing.assert_array_equal(back, planes(Image.fromarray(inner).resize(shape, Image.Resampling.LANCZOS)))
    video = np.stack([prepared.signal, prepared.signal[::-1]], axis=1)
    frames = restore_image(video, prepared.padding, (shape[1], shape[0]))
    np.testing.assert_array_equal(frames, np.stack([back, back[::-1]], axis=1))


def test_tokbench_pad_of_a_fitting_square_is_undone_exactly() -> None:
    prepared = apply_image(picture(64, 64), ImagePrepare("tokbench-pad", 64))
    assert prepared.padding == (0, 0, 0, 0)
    np.testing.assert_array_equal(restore_image(prepared.signal, prepared.padding, (64, 64)), prepared.original)


@pytest.mark.parametrize("size", [384, 1000, 7])
def test_tokbench_pad_never_passes_the_canvas(size: int) -> None:
    for long in (3, 49, 97, 103, 331, 1021):
        prepared = apply_image(Image.new("RGB", (long, max(1, long - 1))), ImagePrepare("tokbench-pad", size))
        assert prepared.signal.shape == (3, size, size)
        assert prepared.padding is not None
        assert min(prepared.padding) >= 0


def test_native_keeps_every_pixel() -> None:
    image = picture(37, 23)
    prepared = apply_image(image, ImagePrepare("native", None))
    np.testing.assert_array_equal(prepared.signal, planes(image))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (ImagePrepare("native", 64), "remove size"),
        (ImagePrepare("adm", None), "needs a size"),
        (ImagePrepare("pil-bicubic", 0), "needs a size"),
        (ImagePrepare("adn", 64), "unknown resize preset 'adn'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_protocol_says_what_is_wrong(prepare: ImagePrepare, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        apply_image(picture(40, 40), prepare)


def test_only_rgb_is_taken() -> None:
    with pytest.raises(UsageError, match="mode L"):
        apply_image(Image.new("L", (40, 40)), ImagePrepare("adm", 32))


@pytest.mark.parametrize("preset", ["adm", "pil-lanczos", "lanczos-cover"])
def test_a_sliver_is_a_failed_file_not_a_full_memory(preset: str) -> None:
    with pytest.raises(DecodeError, match="too narrow"):
        apply_image(Image.new("RGB", (1, 5000)), ImagePrepare(preset, 256))  # type: ignore[arg-type]


def test_restore_rejects_what_it_cannot_undo() -> None:
    with pytest.raises(UsageError, match="uint8"):
        restore_image(np.zeros((3, 8, 8), np.float32), (0, 0, 0, 0), (8, 8))
    with pytest.raises(UsageError, match="leaves nothing"):
        restore_image(np.zeros((3, 8, 8), np.uint8), (4, 0, 4, 0), (8, 8))


def test_decoding_workers_need_no_torch() -> None:
    code = (
        "import sys, tokbench.prepare.image, tokbench.prepare.audio as a, numpy as np\n"
        "a.resample_numpy(np.zeros((1, 90), np.float32), 3, 2)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
