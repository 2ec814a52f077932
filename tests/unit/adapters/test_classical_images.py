"""Image codecs give complete files whose rate is their size, and give the picture back as the format promises."""

from __future__ import annotations

import math
import re
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from tokbench.errors import DecodeError, MissingExtra, NotApplicable, UsageError, install_command
from tokbench.registry import build_tokenizer, expand
from tokbench.spec import Card
from tokbench.types import Code, Tokenizer

LOSSY = {
    "jpeg": ("quality", (10, 50, 95)),
    "webp": ("quality", (0, 50, 95)),
    "avif": ("quality", (10, 50, 90)),
    "jpeg2000": ("psnr", (25, 35, 45)),
    "jxl": ("quality", (10, 50, 95)),
}
LOSSLESS = ("webp-lossless", "jxl-lossless")
BEST = {
    "jpeg": "jpeg?quality=98&subsampling=4:4:4", "webp": "webp?quality=98",
    "avif": "avif?quality=95&subsampling=4:4:4&speed=8", "jpeg2000": "jpeg2000?psnr=45", "jxl": "jxl?quality=98",
}  # fmt: skip


def card(name: str) -> Card:
    (found,) = expand([name])
    return found


def tokenizer(name: str) -> Tokenizer:
    return build_tokenizer(card(name), {})


def photo(height: int = 64, width: int = 64, rows: int = 1) -> Tensor:
    """Crops of a photograph, (rows, 3, height, width), exact multiples of 1/255."""
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    return torch.stack([whole[:, 60 + 40 * i : 60 + 40 * i + height, 150:][:, :, :width] for i in range(rows)])


def psnr(x: Tensor, y: Tensor) -> float:
    mse = (x.double() - y.double()).square().mean().item()
    return math.inf if mse == 0 else -10 * math.log10(mse)


def sizes(code: Code) -> list[int]:
    assert code.payload is not None
    return [len(file) for file in code.payload]


@pytest.mark.parametrize("name", [*LOSSY, *LOSSLESS])
def test_a_batch_comes_back_in_shape_dtype_and_order_and_equals_its_rows(name: str) -> None:
    one, x = tokenizer(name), photo(rows=3)
    code = one.encode(x)
    y = tokenizer(name).decode(code)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.min() >= 0
    assert y.max() <= 1
    assert code.payload is not None
    for index in range(3):
        alone = one.encode(x[index : index + 1])
        assert alone.payload == code.payload[index : index + 1]
        assert torch.equal(one.decode(alone)[0], y[index])
        nearest = max(range(3), key=lambda other: psnr(x[other], y[index]))
        assert nearest == index


@pytest.mark.parametrize("name", [*LOSSY, *LOSSLESS])
def test_threads_change_nothing(name: str) -> None:
    x, one, before = photo(rows=4), tokenizer(name), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = one.encode(x)
        torch.set_num_threads(2)
        double = one.encode(x)
        assert single.payload == double.payload
        assert torch.equal(one.decode(single), one.decode(double))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", LOSSY)
def test_rate_and_quality_rise_together(name: str) -> None:
    option, values = LOSSY[name]
    x = photo(128, 128)
    points = []
    for value in values:
        one = tokenizer(f"{name}?{option}={value}")
        code = one.encode(x)
        points.append((sizes(code)[0], psnr(x, one.decode(code))))
    assert points == sorted(points)
    assert len({size for size, _ in points}) == len(values)
    assert points[-1][1] - points[0][1] > 6


@pytest.mark.parametrize("name", LOSSY)
def test_the_best_point_is_close_and_has_no_colour_cast(name: str) -> None:
    x, one = photo(128, 128), tokenizer(BEST[name])
    y = one.decode(one.encode(x))
    assert psnr(x, y) > 35
    cast = (y - x).mean(dim=(0, 2, 3)).abs().max().item() * 255
    assert cast < (1.0 if name == "avif" else 0.35)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_is_exact_for_every_8_bit_level(name: str) -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 255
    x = torch.cat([levels, levels.flip(-1), levels.flip(-2)], 1)
    one = tokenizer(name)
    assert torch.equal(one.decode(one.encode(x)), x)


def test_values_between_levels_round_half_up_and_saturate() -> None:
    one = tokenizer("webp-lossless")
    x = torch.tensor([0.0, 0.49, 0.5, 1.5, 254.4, 254.5, 300.0, -9.0]).reshape(1, 1, 1, 8).expand(1, 3, 1, 8) / 255
    levels = (one.decode(one.encode(x)) * 255).round()[0, 0, 0].tolist()
    assert levels == [0, 0, 1, 2, 254, 255, 255, 0]


@pytest.mark.parametrize("name", [*LOSSY, *LOSSLESS])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 33), (65, 47)])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    one, x = tokenizer(name), photo(*size)
    y = one.decode(one.encode(x))
    assert y.shape == x.shape
    assert psnr(x, y) > 20 or size == (1, 1)


@pytest.mark.parametrize(
    ("name", "form"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("jpeg2000", "JPEG2000")]
)
def test_the_payload_is_a_file_others_open_and_carries_no_metadata(name: str, form: str) -> None:
    one, x = tokenizer(name), photo(40, 56)
    code = one.encode(x)
    assert code.payload is not None
    with Image.open(BytesIO(code.payload[0])) as image:
        assert image.format == form
        assert image.size == (56, 40)
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
        again = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    assert torch.equal(again, one.decode(code)[0])


def test_jpeg_equals_pillow_with_the_stated_settings() -> None:
    x = photo(48, 48)
    buffer = BytesIO()
    picture = Image.fromarray((x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    picture.save(buffer, "JPEG", quality=30, subsampling="4:2:2", optimize=True)
    assert tokenizer("jpeg?quality=30&subsampling=4:2:2").encode(x).payload == (buffer.getvalue(),)


def test_jpeg2000_loses_its_comment_and_nothing_else() -> None:
    x = photo(96, 96)
    buffer = BytesIO()
    picture = Image.fromarray((x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    picture.save(
        buffer, "JPEG2000", no_jp2=True, irreversible=True, mct=1, quality_mode="dB", quality_layers=[33.0]
    )  # fmt: skip
    one = tokenizer("jpeg2000?psnr=33")
    code = one.encode(x)
    assert code.payload is not None
    assert b"OpenJPEG" in buffer.getvalue()
    assert b"OpenJPEG" not in code.payload[0]
    with Image.open(BytesIO(buffer.getvalue())) as image:
        assert torch.equal(one.decode(code)[0], torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    assert abs(psnr(x, one.decode(code)) - 33) < 1.5


def test_finer_chroma_costs_and_helps() -> None:
    x = photo(96, 96)
    coarse, fine = tokenizer("jpeg?quality=90"), tokenizer("jpeg?quality=90&subsampling=4:4:4")
    a, b = coarse.encode(x), fine.encode(x)
    assert sizes(a)[0] < sizes(b)[0]
    assert psnr(x, coarse.decode(a)) < psnr(x, fine.decode(b))


@pytest.mark.parametrize(
    "name", ["jpeg?quality=0", "jpeg?quality=101", "jpeg?subsampling=4:1:1", "webp?method=7", "avif?speed=11",
             "jpeg2000?psnr=5", "jxl?quality=100", "jpeg?speed=1", "jpeg?quality=high"],
)  # fmt: skip
def test_a_wrong_option_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        card(name)


@pytest.mark.parametrize("name", [*LOSSY, *LOSSLESS])
def test_every_operating_point_of_the_cards_resolves_to_its_own_row(name: str) -> None:
    base = card(name)
    names = [card(f"{name}?{point}").spec.name for point in base.points]
    assert names == [f"{name}?{point}" for point in base.points]


def test_bad_input_is_told() -> None:
    one = tokenizer("jpeg")
    with pytest.raises(UsageError, match=r"\(B, 3, H, W\)"):
        one.encode(photo()[0])
    with pytest.raises(UsageError, match="RGB"):
        one.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(NotApplicable, match="NaN"):
        one.encode(photo().index_fill(3, torch.tensor([0]), math.nan))
    with pytest.raises(NotApplicable, match="16383"):
        tokenizer("webp").encode(torch.zeros(1, 3, 1, 16_384))
    with pytest.raises(UsageError, match="payload"):
        one.decode(Code(latents=photo()))


@pytest.mark.parametrize("name", [*LOSSY, *LOSSLESS])
def test_a_damaged_payload_is_a_decode_error(name: str) -> None:
    one = tokenizer(name)
    code = one.encode(photo())
    assert code.payload is not None
    with pytest.raises(DecodeError, match=name):
        one.decode(Code(payload=(code.payload[0][:20],)))


def test_jxl_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(MissingExtra, match=re.escape(install_command("jxl"))):
        tokenizer("jxl")
