"""Audio codecs come back with the length they were given and no delay, from a payload that holds all they need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import DecodeError, NotApplicable, UsageError
from tokbench.registry import build_tokenizer, expand
from tokbench.spec import Card
from tokbench.types import Code, Stream, Tokenizer

NAMES = ("opus", "mp3", "aac")
LADDER = {"opus": (12, 24, 96), "mp3": (32, 64, 128), "aac": (32, 64, 128)}
RATE = 48_000


def card(name: str) -> Card:
    (found,) = expand([name])
    return found


def tokenizer(name: str) -> Tokenizer:
    return build_tokenizer(card(name), {})


def sound(length: int = 14_411, channels: int = 1, rows: int = 1) -> Tensor:
    """Chirps in noise, another in every row and channel: (rows, channels, length) float32, peak about 0.5."""
    t = torch.arange(length, dtype=torch.float64) / RATE
    noise = torch.randn(rows, channels, length, generator=torch.Generator().manual_seed(5))
    sweeps = torch.stack(
        [
            torch.stack(
                [torch.sin(2 * torch.pi * ((200 + 70 * r + 40 * c) * t + 4000 * t**2)) for c in range(channels)]
            )
            for r in range(rows)
        ]
    )
    return (0.4 * sweeps + 0.02 * noise).float()


def delay(x: Tensor, y: Tensor) -> int:
    """Samples by which `y` comes after `x`: the peak of their cross-correlation."""
    size = 1 << (2 * x.numel() - 1).bit_length()
    spectrum = np.fft.rfft(y.double().numpy(), size) * np.conj(np.fft.rfft(x.double().numpy(), size))
    peak = int(np.fft.irfft(spectrum).argmax())
    return peak if peak < size // 2 else peak - size


def snr(x: Tensor, y: Tensor) -> float:
    return 10 * math.log10(x.double().square().sum().item() / (x.double() - y.double()).square().sum().item())


def kbps(code: Code, length: int) -> float:
    assert code.payload is not None
    return 8 * len(code.payload[0]) / (length / RATE) / 1000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_batch_comes_back_in_shape_dtype_and_order_and_equals_its_rows(name: str, channels: int) -> None:
    one, x = tokenizer(f"{name}?bitrate=96"), sound(channels=channels, rows=3)
    code = one.encode(x)
    y = tokenizer(f"{name}?bitrate=96").decode(code)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert code.payload is not None
    for index in range(3):
        alone = one.encode(x[index : index + 1])
        assert alone.payload == code.payload[index : index + 1]
        assert torch.equal(one.decode(alone)[0], y[index])
        for channel in range(channels):
            assert snr(x[index, channel], y[index, channel]) > 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 2])
def test_no_delay_is_left(name: str, channels: int) -> None:
    one, x = tokenizer(f"{name}?bitrate=128"), sound(channels=channels)
    y = one.decode(one.encode(x))
    assert [delay(x[0, c], y[0, c]) for c in range(channels)] == [0] * channels


@pytest.mark.parametrize("name", [*NAMES, "opus?bitrate=96&application=voip", "opus?bitrate=96&vbr=off"])
def test_no_delay_is_left_on_noise_and_at_every_setting(name: str) -> None:
    noise = torch.randn(1, 1, 9_607, generator=torch.Generator().manual_seed(2))
    x = 0.1 * noise.unfold(-1, 8, 1).mean(-1)
    one = tokenizer(name if "?" in name else f"{name}?bitrate=96")
    assert delay(x[0, 0], one.decode(one.encode(x))[0, 0]) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 2, 100, 959, 960, 1023, 1024, 1152, 1153, 5_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_length_is_exact_to_the_last_sample(name: str, length: int, channels: int) -> None:
    one, x = tokenizer(f"{name}?bitrate=128"), sound(length, channels)
    y = one.decode(one.encode(x))
    assert y.shape == x.shape
    if length > 900:
        assert snr(x[..., -400:], y[..., -400:]) > 5


@pytest.mark.parametrize("name", NAMES)
def test_rate_and_likeness_rise_together_and_meet_the_target(name: str) -> None:
    x, points = sound(RATE), []
    for bitrate in LADDER[name]:
        one = tokenizer(f"{name}?bitrate={bitrate}")
        code = one.encode(x)
        rate = kbps(code, RATE)
        assert abs(rate / bitrate - 1) < 0.15
        points.append((rate, snr(x, one.decode(code))))
    assert points == sorted(points)
    assert points[-1][1] > 18


def test_mp3_payload_is_its_frames_and_a_length() -> None:
    length = 10 * 1152 - 1105
    (payload,) = tokenizer("mp3?bitrate=96").encode(sound(length)).payload or ()
    assert len(payload) == 2 + 10 * (96_000 * 1152 // RATE // 8)
    assert payload[2:4] == b"\xff\xfb"


def test_opus_header_is_five_bytes_and_each_packet_costs_its_length() -> None:
    length = 20 * 960 - 312
    (payload,) = tokenizer("opus?bitrate=24&vbr=off").encode(sound(length)).payload or ()
    assert len(payload) == 3 + 3 + 20 * (1 + 60)


@pytest.mark.parametrize("name", NAMES)
def test_silence_stays_silent_and_clipping_survives(name: str) -> None:
    one = tokenizer(f"{name}?bitrate=96")
    silence = torch.zeros(1, 1, 4_800)
    assert one.decode(one.encode(silence)).abs().max() < 1e-3
    clipped = (sound(4_800) * 8).clamp(-1, 1)
    y = one.decode(one.encode(clipped))
    assert torch.isfinite(y).all()
    assert snr(clipped, y) > 8


@pytest.mark.parametrize("name", NAMES)
def test_every_operating_point_of_the_cards_resolves_to_its_own_row(name: str) -> None:
    base = card(name)
    names = [card(f"{name}?{point}").spec.name for point in base.points]
    assert names == [f"{name}?{point}" for point in base.points]
    assert base.spec.sample_rate == RATE


@pytest.mark.parametrize(
    "name", ["opus?bitrate=5", "opus?vbr=maybe", "mp3?bitrate=100", "aac?bitrate=4", "mulaw?bits=8"]
)
def test_a_wrong_option_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        card(name)


def test_bad_input_is_told() -> None:
    with pytest.raises(UsageError, match=r"\(B, C, T\)"):
        tokenizer("opus").encode(sound()[0])
    with pytest.raises(NotApplicable, match="1 or 2 channels"):
        tokenizer("opus").encode(torch.zeros(1, 3, 100))
    for name in ("mp3", "mulaw"):
        with pytest.raises(NotApplicable, match="NaN"):
            tokenizer(name).encode(torch.full((1, 1, 10), math.nan))
    with pytest.raises(UsageError, match="payload"):
        tokenizer("opus").decode(Code(latents=sound()))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_payload_is_a_decode_error(name: str) -> None:
    one = tokenizer(name)
    (payload,) = one.encode(sound()).payload or ()
    for damaged in (b"", payload[:3], payload[: len(payload) // 2]):
        with pytest.raises(DecodeError, match=name):
            one.decode(Code(payload=(damaged,)))


# ------------------------------------------------------------------------------------------------------ µ-law


def octets(values: list[float]) -> list[int]:
    code = tokenizer("mulaw").encode(torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1) / 8192)
    found: list[int] = code.streams[0].indices[0, 0].tolist()
    return found


def test_mulaw_is_one_stream_of_octets_at_any_rate_and_shape() -> None:
    x = sound(1_001, channels=2, rows=3)
    one = tokenizer("mulaw")
    code = one.encode(x)
    (stream,) = code.streams
    assert one.spec.sample_rate is None
    assert one.spec.codebook_size == (256,)
    assert stream.indices.shape == x.shape
    assert stream.indices.dtype == torch.int64
    assert stream.indices.min() >= 0
    assert stream.indices.max() <= 255
    assert snr(x, one.decode(code)) > 36
    assert torch.equal(one.encode(x[1:2]).streams[0].indices, stream.indices[1:2])


def test_mulaw_follows_the_decision_values_of_g711() -> None:
    # Table 2a of G.711: decision values 0, 1, 3, 31, 35, 95, 103, 4063, 7903 and the virtual 8159.
    assert octets([0.0, 0.99, 1.0, 2.99, 3.0]) == [0xFF, 0xFF, 0xFE, 0xFE, 0xFD]
    assert octets([30.99, 31.0, 34.99, 35.0, 94.99, 95.0, 102.99, 103.0]) == [
        0xF0, 0xEF, 0xEF, 0xEE, 0xE0, 0xDF, 0xDF, 0xDE,
    ]  # fmt: skip
    assert octets([4062.9, 4063.0, 7902.9, 7903.0, 8191.0]) == [0x90, 0x8F, 0x81, 0x80, 0x80]
    assert octets([-0.5, -1.0, -31.0, -8192.0]) == [0x7F, 0x7E, 0x6F, 0x00]


def test_mulaw_decodes_as_ffmpeg_does_and_keeps_its_own_values() -> None:
    import av

    every = torch.arange(256).reshape(1, 1, 256)
    one = tokenizer("mulaw")
    decoded = one.decode(Code(streams=(Stream("g711-mulaw", 256, every),)))
    context = av.CodecContext.create("pcm_mulaw", "r")
    context.sample_rate, context.layout = 8_000, "mono"
    (frame,) = context.decode(av.Packet(bytes(range(256))))
    assert torch.equal((decoded[0, 0] * 32_768).short(), torch.from_numpy(frame.to_ndarray().reshape(-1)))
    again = one.encode(decoded).streams[0].indices
    minus_zero = 0x7F
    assert torch.equal(again[every != minus_zero], every[every != minus_zero])


def test_mulaw_refuses_another_code() -> None:
    with pytest.raises(UsageError, match="256"):
        tokenizer("mulaw").decode(Code(payload=(b"",)))
