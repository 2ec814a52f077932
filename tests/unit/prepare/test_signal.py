from __future__ import annotations

import numpy as np
import pytest
import torch

from tokbench.errors import ContractError, UsageError
from tokbench.prepare.signal import (
    Unpad,
    fit_length,
    from_range,
    pad_to_stride,
    round_8bit,
    to_canonical,
    to_range,
    unpad,
)
from tokbench.spec import FrameRule, Modality

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-2.5, 3.0)]


def test_all_256_levels_survive_float32() -> None:
    x = to_canonical(LEVELS.numpy(), "image", "cpu")
    assert x.dtype == torch.float32
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal((x * 255).to(torch.uint8), LEVELS)  # truncating: the product itself is the level
    assert torch.equal(x.double(), (LEVELS.double() / 255).float().double())  # the float32 nearest to v / 255


@pytest.mark.parametrize("target", RANGES)
def test_rounding_finds_every_level_again_after_any_range(target: tuple[float, float]) -> None:
    x = to_canonical(LEVELS, "image", "cpu")
    y = to_range(x, target, "image")
    assert torch.allclose(y.amin(), torch.tensor(target[0]))
    assert torch.allclose(y.amax(), torch.tensor(target[1]))
    assert torch.equal(round_8bit(from_range(y, target, "image"), "round"), x)


def test_truncation_after_a_range_map_loses_levels() -> None:
    x = to_canonical(LEVELS, "image", "cpu")[0, 0].flatten()
    levels = LEVELS[0, 0].flatten().int()
    normalised = (x - 0.5) / 0.5
    assert int(((normalised + 1) / 2 * 255).int().ne(levels).sum()) == 63
    divided = (levels.double() / 127.5 - 1).float()  # as NumPy divides integers
    assert int(((divided + 1) / 2 * 255).int().ne(levels).sum()) == 95
    assert int((x * 255).int().ne(levels).sum()) == 0
    assert int((127.5 * normalised + 128).int().ne(levels).sum()) == 0
    truncated = round_8bit(from_range(to_range(x, (-1.0, 1.0), "image"), (-1.0, 1.0), "image"), "truncate")
    assert set((x - truncated).mul(255).round().int().tolist()) == {0, 1}


@pytest.mark.parametrize(("modality", "same"), [("image", (0.0, 1.0)), ("video", (0.0, 1.0)), ("audio", (-1.0, 1.0))])
def test_equal_ranges_return_the_tensor_itself(modality: Modality, same: tuple[float, float]) -> None:
    x = torch.randn(1, 2, 5)
    assert to_range(x, same, modality) is x
    assert from_range(x, same, modality) is x


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("target", RANGES)
def test_ranges_are_affine_unclamped_and_inverse(modality: Modality, target: tuple[float, float]) -> None:
    low, high = (-1.0, 1.0) if modality == "audio" else (0.0, 1.0)
    x = torch.tensor([low - 0.25, low, (low + high) / 2, high, high + 0.25])
    y = to_range(x, target, modality)
    ends = np.interp(0.5, [0, 1], target)
    assert y[1].item() == pytest.approx(target[0])
    assert y[2].item() == pytest.approx(ends)
    assert y[3].item() == pytest.approx(target[1])
    assert y[0] < target[0]
    assert y[4] > target[1]
    assert torch.allclose(from_range(y, target, modality), x, atol=1e-6)


def test_half_precision_output_is_mapped_in_float32() -> None:
    y = torch.tensor([-1.0, 0.5, 1.0], dtype=torch.bfloat16)
    assert from_range(y, (-1.0, 1.0), "image").dtype == torch.float32


@pytest.mark.parametrize("bad", [(1.0, -1.0), (0.0, 0.0)])
def test_a_reversed_range_is_an_error(bad: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="empty or reversed"):
        to_range(torch.zeros(1), bad, "image")


def test_floats_pass_and_unknown_integers_do_not() -> None:
    sound = np.array([[[-1.0, 0.25, 1.0]]], np.float64)
    assert to_canonical(sound, "audio", "cpu").tolist() == sound.tolist()
    with pytest.raises(UsageError, match="int16 has no known range"):
        to_canonical(np.zeros((1, 1, 4), np.int16), "audio", "cpu")
    with pytest.raises(UsageError, match="uint8 has no known range"):
        to_canonical(np.zeros((1, 1, 4), np.uint8), "audio", "cpu")


def test_read_only_and_transposed_arrays_are_taken() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3).transpose(0, 3, 1, 2)
    array.flags.writeable = False
    assert torch.equal(to_canonical(array, "image", "cpu") * 255, torch.from_numpy(array.copy()).float())


@pytest.mark.parametrize(
    ("x", "mode", "level"),
    [
        (0.5 / 255, "round", 1),
        (0.49 / 255, "round", 0),
        (1.5 / 255, "round", 2),  # half up, not half to even: 2.5 goes to 3
        (2.5 / 255, "round", 3),
        (2.99 / 255, "truncate", 2),
        (254.999 / 255, "truncate", 254),
        (1.0, "truncate", 255),
        (-3.0, "round", 0),
        (7.0, "round", 255),
        (7.0, "truncate", 255),
    ],
)
def test_rounding_modes(x: float, mode: str, level: int) -> None:
    got = round_8bit(torch.tensor([x], dtype=torch.float64), mode)  # type: ignore[arg-type]
    assert got.dtype == torch.float32
    assert got.item() == np.float32(level) / np.float32(255)


def test_round_is_what_adm_does_on_minus_one_to_one() -> None:
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = (127.5 * (2 * x - 1) + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal((round_8bit(x, "round") * 255).to(torch.uint8), theirs)


def test_no_rounding_only_clamps() -> None:
    x = torch.tensor([-0.5, 0.1234567, 1.5])
    assert torch.equal(round_8bit(x, "none"), torch.tensor([0.0, 0.1234567, 1.0]))
    with pytest.raises(UsageError, match="unknown rounding"):
        round_8bit(x, "ceil")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "strides", "rule", "padded"),
    [
        ((2, 3, 30, 33), (16, 16), FrameRule(), (32, 48)),
        ((2, 3, 1, 1), (8, 4), FrameRule(), (8, 4)),
        ((1, 3, 17, 30, 33), (4, 8, 8), FrameRule(1, 4), (17, 32, 40)),
        ((1, 3, 15, 8, 8), (4, 8, 8), FrameRule(1, 4), (17, 8, 8)),
        ((1, 3, 18, 8, 8), (4, 8, 8), FrameRule(1, 4), (21, 8, 8)),
        ((1, 3, 1, 8, 8), (4, 8, 8), FrameRule(1, 4), (1, 8, 8)),
        ((1, 3, 15, 8, 8), (4, 8, 8), FrameRule(), (16, 8, 8)),
        ((1, 3, 3, 8, 8), (1, 8, 8), FrameRule(0, 16), (16, 8, 8)),
        ((1, 3, 2, 8, 8), (2, 8, 8), FrameRule(5, 1), (5, 8, 8)),
        ((3, 2, 1000), (320,), FrameRule(), (1280,)),
    ],
)
def test_padding_and_its_undoing(
    shape: tuple[int, ...], strides: tuple[int, ...], rule: FrameRule, padded: tuple[int, ...]
) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    y, record = pad_to_stride(x, strides, rule)
    assert tuple(y.shape) == (*shape[:2], *padded)
    assert record == Unpad(shape[2:], padded)
    assert torch.equal(unpad(y, record), x)
    # Every value beyond the end is the edge's (space, time) or zero (sound).
    clamped = [torch.arange(n).clamp(max=s - 1) for n, s in zip(padded, shape[2:], strict=True)]
    expected = x
    for axis, index in enumerate(clamped, start=2):
        expected = expected.index_select(axis, index)
    if len(shape) == 3:
        expected = expected.clone()
        expected[..., shape[-1] :] = 0
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("shape", "strides", "rule"),
    [
        ((1, 3, 32, 48), (16, 16), FrameRule()),
        ((1, 3, 32, 47), (), FrameRule()),
        ((1, 3, 17, 16, 16), (4, 8, 8), FrameRule(1, 4)),
        ((1, 1, 640), (320,), FrameRule()),
        ((1, 1, 641), (), FrameRule()),
    ],
)
def test_what_fits_is_returned_as_it_is(shape: tuple[int, ...], strides: tuple[int, ...], rule: FrameRule) -> None:
    x = torch.rand(shape)
    y, record = pad_to_stride(x, strides, rule)
    assert y is x
    assert torch.equal(unpad(y, record), x)


def test_strides_must_fit_the_axes_and_decoders_must_keep_the_size() -> None:
    with pytest.raises(UsageError, match="does not fit axes"):
        pad_to_stride(torch.zeros(1, 3, 8, 8), (4, 8, 8))
    with pytest.raises(UsageError, match="does not fit axes"):
        pad_to_stride(torch.zeros(1, 3, 8, 8), (0, 8))
    with pytest.raises(UsageError, match="cannot pad a batch"):
        pad_to_stride(torch.zeros(3, 8), (8,))
    with pytest.raises(UsageError, match="none empty"):
        pad_to_stride(torch.zeros(1, 1, 0), (8,))
    _, record = pad_to_stride(torch.zeros(1, 3, 9, 9), (8, 8))
    with pytest.raises(ContractError, match=r"returned \(15, 16\)"):
        unpad(torch.zeros(1, 3, 15, 16), record)


@pytest.mark.parametrize(("have", "want", "difference"), [(103, 100, 3), (97, 100, -3), (100, 100, 0)])
def test_sound_is_cut_or_filled_and_the_difference_told(have: int, want: int, difference: int) -> None:
    x = torch.rand(2, 1, have) + 1
    y, got = fit_length(x, want)
    assert got == difference
    assert y.shape == (2, 1, want)
    assert torch.equal(y[..., : min(have, want)], x[..., : min(have, want)])
    assert (y[..., have:] == 0).all()
    assert (y is x) == (difference == 0)
