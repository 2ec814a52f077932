"""Video codecs give self-contained elementary streams, the same bytes every time, and exactly the frames they were given."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from io import BytesIO

import pytest
import torch
from skimage import data
from torch import Tensor

from tokbench.errors import DecodeError, NotApplicable, UsageError
from tokbench.registry import build_tokenizer, expand
from tokbench.spec import Card
from tokbench.types import Code, Tokenizer

NAMES = ("h264", "hevc", "av1", "vp9")
CHROMA = ("h264", "hevc", "vp9")


def card(name: str) -> Card:
    (found,) = expand([name])
    return found


def tokenizer(name: str) -> Tokenizer:
    return build_tokenizer(card(name), {})


def clip(frames: int = 5, height: int = 64, width: int = 64, rows: int = 1) -> Tensor:
    """Pans over a photograph, (rows, 3, frames, height, width), exact multiples of 1/255."""
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    pans = [
        torch.stack(
            [whole[:, 60 + 2 * t : 60 + 2 * t + height, 170 + 30 * r + t :][..., :width] for t in range(frames)], 1
        )
        for r in range(rows)
    ]
    return torch.stack(pans)


def psnr(x: Tensor, y: Tensor) -> float:
    return -10 * math.log10((x.double() - y.double()).square().mean().item())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_comes_back_in_shape_dtype_and_order_and_equals_its_rows(name: str) -> None:
    one, x = tokenizer(name), clip(rows=3)
    code = one.encode(x)
    y = tokenizer(name).decode(code)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert code.payload is not None
    for index in range(3):
        alone = one.encode(x[index : index + 1])
        assert alone.payload == code.payload[index : index + 1]
        assert torch.equal(one.decode(alone)[0], y[index])
        assert max(range(3), key=lambda other: psnr(x[other], y[index])) == index


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (9, 66, 98)])
def test_frames_come_back_in_number_and_order(name: str, shape: tuple[int, int, int]) -> None:
    one, x = tokenizer(f"{name}?crf=10"), clip(*shape)
    y = one.decode(one.encode(x))
    assert y.shape == x.shape
    for t in range(shape[0]):
        assert max(range(shape[0]), key=lambda other: psnr(x[:, :, other], y[:, :, t])) == t


@pytest.mark.parametrize("name", NAMES)
def test_rate_and_quality_rise_together(name: str) -> None:
    x, points = clip(9, 96, 96), []
    for crf in (50, 35, 20, 8):
        one = tokenizer(f"{name}?crf={crf}")
        code = one.encode(x)
        assert code.payload is not None
        points.append((len(code.payload[0]), psnr(x, one.decode(code))))
    assert points == sorted(points)
    assert points[-1][1] > 35


@pytest.mark.parametrize("name", CHROMA)
def test_near_lossless_full_chroma_shows_no_colour_shift(name: str) -> None:
    x, one = clip(3), tokenizer(f"{name}?crf=0&subsampling=4:4:4")
    y = one.decode(one.encode(x))
    assert psnr(x, y) > (50 if name == "h264" else 46)  # x264 is lossless here: what is left is 8-bit YCbCr alone
    assert (y - x).mean(dim=(0, 2, 3, 4)).abs().max().item() * 255 < 0.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "colour", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
)
def test_saturated_colours_stay_what_they_are(name: str, colour: tuple[float, float, float]) -> None:
    x = torch.tensor(colour).reshape(1, 3, 1, 1, 1).expand(1, 3, 2, 64, 64)
    one = tokenizer(f"{name}?crf=5")
    assert (one.decode(one.encode(x)) - x).abs().max().item() * 255 <= 3


@pytest.mark.parametrize("name", NAMES)
def test_the_stream_opens_elsewhere_and_signals_its_colour(name: str) -> None:
    import av

    one, x = tokenizer(name), clip(4)
    code = one.encode(x)
    assert code.payload is not None
    stream = {"h264": "h264", "hevc": "hevc", "av1": "obu", "vp9": "ivf"}[name]
    with av.open(BytesIO(code.payload[0]), "r", format=stream) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4
    assert {frame.format.name for frame in frames} == {"yuv420p"}
    assert {int(frame.colorspace) for frame in frames} == {1}
    assert {int(frame.color_range) for frame in frames} == {1}


def test_no_stream_carries_its_encoder_s_settings() -> None:
    for name in NAMES:
        payload = tokenizer(name).encode(clip(2)).payload
        assert payload is not None
        assert b"x264" not in payload[0]
        assert b"x265" not in payload[0]
        assert b"crf" not in payload[0]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
def test_equal_clips_give_equal_bytes_whatever_lies_in_memory() -> None:
    digests = {_digest_with_memory(fill) for fill in ("0", "129", "255")}
    assert len(digests) == 1


def _digest_with_memory(fill: str) -> str:
    text = "from tokbench_test_video import digest; print(digest())"
    loader = (
        "import importlib.util as u, sys\n"
        f"s = u.spec_from_file_location('tokbench_test_video', {__file__!r}); m = u.module_from_spec(s)\n"
        "sys.modules[s.name] = m; s.loader.exec_module(m)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", loader + text],
        env={**os.environ, "MALLOC_PERTURB_": fill, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout


def digest() -> str:
    """Digest of what every codec writes for clips narrow enough to have met uninitialised memory in two encoders."""
    total = hashlib.sha256()
    for name in NAMES:
        one = tokenizer(f"{name}?crf=10")
        for height, width in ((64, 64), (96, 96), (128, 64), (72, 72)):
            payload = one.encode(clip(9, height, width)).payload
            assert payload is not None
            total.update(payload[0])
    return total.hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_every_operating_point_of_the_cards_resolves_to_its_own_row(name: str) -> None:
    base = card(name)
    names = [card(f"{name}?{point}").spec.name for point in base.points]
    assert names == [f"{name}?{point}" for point in base.points]
    assert base.spec.downsample == (1, 2, 2)


@pytest.mark.parametrize(
    "name", ["h264?crf=52", "av1?crf=0", "h264?preset=fastest", "av1?subsampling=4:4:4", "vp9?speed=9", "hevc?qp=3"]
)
def test_a_wrong_option_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        card(name)


def test_bad_input_is_told() -> None:
    with pytest.raises(UsageError, match=r"\(B, 3, T, H, W\)"):
        tokenizer("h264").encode(clip()[0])
    with pytest.raises(NotApplicable, match="even"):
        tokenizer("h264").encode(clip(2, 65, 64))
    with pytest.raises(NotApplicable, match="64 pixels"):
        tokenizer("hevc").encode(clip(2, 32, 64))
    with pytest.raises(UsageError, match="payload"):
        tokenizer("h264").decode(Code(latents=clip()))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_payload_is_a_decode_error(name: str) -> None:
    with pytest.raises(DecodeError, match=name):
        tokenizer(name).decode(Code(payload=(b"\x00" * 40,)))


def test_odd_sides_are_taken_where_chroma_is_whole() -> None:
    one, x = tokenizer("h264?crf=10&subsampling=4:4:4"), clip(2, 65, 71)
    y = one.decode(one.encode(x))
    assert y.shape == x.shape
    assert psnr(x, y) > 35
