"""Floors, ceilings and anchors of sound are what they say; Codec2 codes speech at its rates, the same every time."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tokbench.adapters.audio_bounds import low_pass
from tokbench.contract import check
from tokbench.data import Item, load, open_source
from tokbench.errors import DecodeError, MissingExtra, NotApplicable, UsageError, install_command
from tokbench.prepare.audio import resample
from tokbench.reconstruct import Engine, reconstruct
from tokbench.registry import build_tokenizer, expand
from tokbench.spec import AudioPrepare, EvalProtocol
from tokbench.types import Code, Tokenizer


def tokenizer(name: str) -> Tokenizer:
    (card,) = expand([name])
    return build_tokenizer(card, {})


def through(name: str, signal: Tensor, rate: int, key: str = "a") -> Tensor:
    item = Item(key, key, signal.numpy(), sample_rate=rate)
    protocol = EvalProtocol("audio", AudioPrepare(rate), rounding="none")
    return reconstruct(tokenizer(name), [item], protocol, Engine()).samples[0].raw[0]


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds)) / rate)[None]


def level(x: Tensor) -> float:
    """RMS of the middle half, in dB."""
    quarter = x.shape[-1] // 4
    return 20 * math.log10(float(x[..., quarter:-quarter].double().square().mean().sqrt()) + 1e-12)


@pytest.mark.parametrize("name", ["resample-audio?rate=16000", "band-limit", "noise-audio", "codec2?mode=1300"])
def test_the_contract_holds(name: str) -> None:
    assert [item for item in check(tokenizer(name), Engine()) if item.verdict == "fail"] == []


@pytest.mark.parametrize("rate", [8000, 16_000, 11_025])
def test_the_resampler_row_is_the_engines_way_there_and_back(rate: int) -> None:
    x = 0.2 * torch.randn(1, 12_001, generator=torch.Generator().manual_seed(1))
    expected = resample(resample(x, 24_000, rate), rate, 24_000)[..., : x.shape[-1]]
    assert torch.equal(through(f"resample-audio?rate={rate}", x, 24_000), expected)
    assert torch.equal(through(f"resample-audio?rate={rate}", x, rate), x)


@pytest.mark.parametrize("cutoff", [3500, 7000])
def test_the_band_limit_keeps_what_is_below_and_stops_what_is_above(cutoff: int) -> None:
    name = f"band-limit?cutoff={cutoff}"
    for hertz, gain in ((100, 0.0), (cutoff, 0.0), (cutoff + 600, -60.0), (2 * cutoff, -60.0)):
        x = tone(hertz, 48_000)
        change = level(through(name, x, 48_000)) - level(x)
        assert (abs(change) < 0.1) if gain == 0 else (change < gain)
    impulse = torch.zeros(1, 2001)
    impulse[0, 1000] = 1
    y = through(name, impulse, 48_000)
    assert int(y.argmax()) == 1000
    torch.testing.assert_close(y, y.flip(-1))


def test_the_filter_is_symmetric_of_odd_length_and_unit_gain() -> None:
    kernel = low_pass(48_000, 3500, 500, 60)
    assert len(kernel) % 2 == 1
    torch.testing.assert_close(kernel, kernel.flip(0), atol=1e-15, rtol=0)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)


def test_noise_has_the_level_of_the_row_and_nothing_else_of_it() -> None:
    x = torch.cat([tone(440, 24_000), 0.1 * tone(300, 24_000)])
    y = through("noise-audio", x, 24_000)
    for channel in range(2):
        assert level(y[channel]) == pytest.approx(level(x[channel]), abs=0.3)
        assert abs(float(torch.corrcoef(torch.stack([x[channel], y[channel]]))[0, 1])) < 0.05
    assert torch.equal(through("noise-audio", x, 24_000), y)
    assert not torch.equal(through("noise-audio", x, 24_000, key="b"), y)
    assert torch.equal(through("noise-audio", torch.zeros(1, 100), 24_000), torch.zeros(1, 100))
    with pytest.raises(NotApplicable, match="NaN"):
        tokenizer("noise-audio").encode(torch.full((1, 1, 8), math.nan))


@pytest.mark.parametrize("name", ["resample-audio", "band-limit", "noise-audio"])
def test_a_code_of_another_tokenizer_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="carries none"):
        tokenizer(name).decode(Code(payload=(b"",)))


# --------------------------------------------------------------------------------------------------------------- Codec2

RATES = {"3200": 3200, "2400": 2400, "1600": 1600, "1400": 1400, "1300": 1300, "1200": 1200, "700C": 700}


@pytest.fixture(scope="module")
def speech() -> Tensor:
    source = open_source("sample:speech", "audio")
    (item,) = load(source, "speech/austen-0880", AudioPrepare(sample_rate=8000))
    assert isinstance(item, Item)
    return torch.from_numpy(np.asarray(item.signal, np.float32))[None]


def envelope(x: Tensor) -> Tensor:
    window = torch.hann_window(161, periodic=False, dtype=torch.float64)
    smooth = torch.nn.functional.conv1d(x.double().abs()[None, None], window[None, None] / window.sum(), padding=80)[
        0, 0
    ]
    return smooth - smooth.mean()


@pytest.mark.parametrize("mode", sorted(RATES))
def test_codec2_codes_speech_at_its_rate_without_delay_and_twice_alike(mode: str, speech: Tensor) -> None:
    pytest.importorskip("pycodec2")
    codec = tokenizer(f"codec2?mode={mode}")
    code = codec.encode(speech)
    assert code.payload is not None
    frames = 8 * (len(code.payload[0]) - 4) / (speech.shape[-1] / 8000)
    assert RATES[mode] <= frames < RATES[mode] * 1.04
    decoded = codec.decode(code)
    assert decoded.shape == speech.shape
    assert decoded.dtype == torch.float32
    assert torch.equal(codec.decode(code), decoded)
    a, b = envelope(speech[0, 0]), envelope(decoded[0, 0])
    size = 1 << 16
    cross = torch.fft.irfft(torch.fft.rfft(a, size).conj() * torch.fft.rfft(b, size))
    peak = int(cross.argmax())
    assert abs(peak if peak < size // 2 else peak - size) <= 30
    assert float(cross.max() / (a.norm() * b.norm())) > 0.8


def test_codec2_rows_are_independent_and_lengths_exact(speech: Tensor) -> None:
    pytest.importorskip("pycodec2")
    codec = tokenizer("codec2?mode=700C")
    rows = torch.cat([speech[..., :6001], 0.5 * speech[..., 3000:9001]])
    code = codec.encode(rows)
    both = codec.decode(code)
    for row in range(2):
        alone = codec.encode(rows[row : row + 1])
        assert alone.payload == (code.payload or ())[row : row + 1]
        assert torch.equal(codec.decode(alone)[0], both[row])
    for length in (1, 319, 320, 321):
        x = speech[..., :length]
        assert codec.decode(codec.encode(x)).shape == x.shape
    with pytest.raises(DecodeError, match="damaged"):
        codec.decode(Code(payload=((code.payload or (b"",))[0][:-1],)))
    with pytest.raises(NotApplicable, match="1 channel, got 2"):
        codec.encode(torch.zeros(1, 2, 100))


def test_without_pycodec2_it_says_which_extra_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(MissingExtra, match=re.escape(install_command("audio"))):
        tokenizer("codec2")


def test_the_recordings_decode_to_what_their_files_hold() -> None:
    source = open_source("sample:speech", "audio")
    blob = source.open("speech/goforward")
    (item,) = load(source, "speech/goforward", AudioPrepare(sample_rate=16_000))
    assert isinstance(item, Item)
    stored, rate = soundfile.read(blob.path, dtype="int16")  # type: ignore[union-attr]
    assert rate == 16_000
    np.testing.assert_array_equal(np.rint(np.asarray(item.signal[0], np.float64) * 32768), stored)
