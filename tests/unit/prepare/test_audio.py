from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokbench.errors import UsageError
from tokbench.prepare.audio import channels, resample, resample_numpy

# x[n] = sin(0.37 n) / 2 + cos(2.9 n) / 4 + 0.2, n < 64, float64, through the function
# torchaudio.functional.resample(x, source, target) of torchaudio 2.9.1, default arguments, printed to 12 decimals:
# (source, target, length, first four, last four).
TORCHAUDIO = [
    (24000, 16000, 43, [0.266173652254, 0.439818939761, 0.659375583161, 0.692674637689],
     [0.359666490939, 0.118020277079, -0.190495693203, -0.150608620774]),
    (48000, 16000, 22, [0.229748271567, 0.647503741228, 0.598413856097, 0.10589776167],
     [0.645908774486, 0.606839814701, 0.063680483454, -0.136282379197]),
    (44100, 48000, 70, [0.441668323132, 0.135481884987, 0.688375206308, 0.533972016769],
     [0.102792536444, -0.212971632235, -0.313534289632, 0.033219732585]),
    (24000, 48000, 128, [0.441668323132, 0.244423574346, 0.147693339861, 0.449591656542],
     [-0.388210866378, -0.303046037806, -0.067300070711, 0.039582240742]),
    (48000, 44100, 59, [0.374722360967, 0.249149109489, 0.689765808187, 0.552379966961],
     [0.03621423153, 0.042060400605, -0.356602278824, -0.05115700367]),
]  # fmt: skip
RATES = [(24000, 16000), (16000, 24000), (44100, 48000), (48000, 44100), (8000, 24000), (22050, 24000), (48000, 8000)]


def tone(length: int) -> np.ndarray:
    n = np.arange(length)
    return np.sin(0.37 * n) / 2 + np.cos(2.9 * n) / 4 + 0.2


@pytest.mark.parametrize(("source", "target", "length", "first", "last"), TORCHAUDIO)
def test_torchaudio_numbers(source: int, target: int, length: int, first: list[float], last: list[float]) -> None:
    x = tone(64)
    y = resample_numpy(x, source, target)
    assert y.shape == (length,)
    np.testing.assert_allclose(y[:4], first, atol=2e-12, rtol=0)
    np.testing.assert_allclose(y[-4:], last, atol=2e-12, rtol=0)
    single = resample(torch.from_numpy(x).float(), source, target)
    np.testing.assert_allclose(single[:4], first, atol=1e-6, rtol=0)
    np.testing.assert_allclose(single[-4:], last, atol=1e-6, rtol=0)


def by_definition(x: np.ndarray, source: int, target: int) -> list[float]:
    """Windowed sinc interpolation written out: one output, one tap at a time."""
    common = math.gcd(source, target)
    source, target = source // common, target // common
    cutoff = 0.99 * min(source, target)
    out = []
    for j in range(math.ceil(len(x) * target / source)):
        total = 0.0
        for i, value in enumerate(x):
            t = cutoff * (i / source - j / target)
            if abs(t) < 6:
                sinc = 1.0 if t == 0 else math.sin(math.pi * t) / (math.pi * t)
                total += value * sinc * math.cos(math.pi * t / 12) ** 2 * cutoff / source
        out.append(total)
    return out


@pytest.mark.parametrize("rates", [*RATES, (97, 89), (1, 7), (7, 1)])
@pytest.mark.parametrize("length", [1, 40, 301])
def test_the_definition_written_out(rates: tuple[int, int], length: int) -> None:
    x = tone(length)
    np.testing.assert_allclose(resample_numpy(x, *rates), by_definition(x, *rates), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rates", RATES)
def test_torch_and_numpy_agree_to_the_bit_on_cpu(rates: tuple[int, int]) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 2011)).astype(np.float32)
    mine = resample_numpy(x, *rates)
    theirs = resample(torch.from_numpy(x), *rates)
    assert mine.dtype == np.float32
    assert theirs.dtype == torch.float32
    assert mine.shape == (2, -(-2011 * rates[1] // rates[0]))
    np.testing.assert_array_equal(mine, theirs.numpy())


def test_rows_do_not_depend_on_their_batch() -> None:
    x = torch.rand(8, 2, 70_000, generator=torch.Generator().manual_seed(0)) * 2 - 1  # more than one block
    whole = resample(x, 24000, 16000)
    assert whole.shape == (8, 2, 46_667)
    for size in (1, 3):
        parts = torch.cat([resample(part, 24000, 16000) for part in x.split(size)])
        assert torch.equal(parts, whole)


def test_a_low_tone_survives_a_round_trip_and_a_high_one_is_removed() -> None:
    seconds = np.arange(24_000) / 24_000
    low, high = np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 11_000 * seconds)
    middle = slice(2000, -2000)
    back = resample_numpy(resample_numpy(low, 24_000, 16_000), 16_000, 24_000)
    assert back.shape == low.shape
    assert np.abs(back - low)[middle].max() < 2e-3
    assert np.abs(resample_numpy(high, 24_000, 16_000))[middle].max() < 1e-2  # -48 dB is what six zero crossings give


def test_rates_without_a_common_divisor_need_no_giant_filter() -> None:
    x = np.ones((1, 44_101), np.float32)
    y = resample_numpy(x, 44_101, 48_000)
    assert y.shape == (1, 48_000)
    np.testing.assert_allclose(y[:, 100:-100], 1.0, atol=5e-3)


def test_equal_rates_return_the_input_itself_and_nothing_stays_nothing() -> None:
    x = np.zeros((1, 5), np.float32)
    assert resample_numpy(x, 24_000, 24_000) is x
    t = torch.zeros(1, 5)
    assert resample(t, 8000, 8000) is t
    assert resample(torch.zeros(2, 1, 0), 3, 2).shape == (2, 1, 0)
    assert resample_numpy(np.zeros((1, 0), np.float32), 3, 2).shape == (1, 0)


@pytest.mark.parametrize("rates", [(0, 1), (24_000, -1), (22_050.5, 24_000)])
def test_bad_rates_and_dtypes_are_errors(rates: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="positive whole numbers"):
        resample_numpy(np.zeros((1, 8), np.float32), *rates)
    with pytest.raises(UsageError, match="positive whole numbers"):
        resample(torch.zeros(1, 8), *rates)


def test_integer_sound_is_an_error() -> None:
    with pytest.raises(UsageError, match="int16"):
        resample_numpy(np.zeros((1, 8), np.int16), 3, 2)
    with pytest.raises(UsageError, match="int16"):
        resample(torch.zeros((1, 8), dtype=torch.int16), 3, 2)


def test_channel_rules() -> None:
    x = np.array([[1.0, 0.5], [0.0, -0.5]], np.float32)
    mono = channels(x, "mono")
    assert mono.dtype == np.float32
    assert mono.tolist() == [[0.5, 0.0]]
    assert channels(x, "native") is x
    one = x[:1]
    assert channels(one, "mono") is one
    with pytest.raises(UsageError, match="unknown channel rule"):
        channels(x, "left")  # type: ignore[arg-type]
