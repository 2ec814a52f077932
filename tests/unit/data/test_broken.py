"""Every broken file is one failed row with a reason; the good files around it are read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tokbench.data import Failure, Item, load, open_source, stream
from tokbench.data.types import Blob
from tokbench.errors import DecodeError
from tokbench.spec import AudioPrepare, ImagePrepare, Modality, VideoPrepare

PREPARE = {
    "image": ImagePrepare(preset="native", size=None),
    "video": VideoPrepare(preset="native", size=None, frames=4),
    "audio": AudioPrepare(sample_rate=None),
}


def fails(path: Path, modality: Modality) -> str:
    """Load a file and return why it failed."""
    entries = load(open_source(str(path.parent), modality), path.name, PREPARE[modality])
    (failure,) = entries
    assert isinstance(failure, Failure), failure
    assert failure.key == failure.group == path.name
    assert str(path.parent) not in failure.reason
    return failure.reason


def png(path: Path, photo: np.ndarray) -> Path:
    Image.fromarray(photo).save(path)
    return path


@pytest.mark.parametrize(("name", "modality"), [("a.png", "image"), ("a.mp4", "video"), ("a.wav", "audio")])
def test_zero_bytes(tmp_path: Path, name: str, modality: Modality) -> None:
    (tmp_path / name).touch()
    assert fails(tmp_path / name, modality) == "is empty (0 bytes)"


@pytest.mark.parametrize(("name", "modality"), [("a.png", "image"), ("a.mp4", "video"), ("a.wav", "audio")])
def test_text_under_another_name(tmp_path: Path, name: str, modality: Modality) -> None:
    (tmp_path / name).write_text("not a media file\n" * 50)
    assert fails(tmp_path / name, modality)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_images(tmp_path: Path, photo: np.ndarray, name: str, share: float) -> None:
    Image.fromarray(photo).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert fails(tmp_path / name, "image")


def test_damaged_pixels(tmp_path: Path, photo: np.ndarray) -> None:
    data = bytearray(png(tmp_path / "a.png", photo).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    assert fails(tmp_path / "a.png", "image")


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (100_000, 100_000)])
def test_decompression_bomb(tmp_path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    limit = Image.MAX_IMAGE_PIXELS
    assert "megapixels" in fails(tmp_path / "a.png", "image")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_directory_is_no_file() -> None:
    with pytest.raises(DecodeError, match="is a directory"):
        Blob("a.png", path="/").open()


def test_a_directory_with_the_name_of_an_image_is_walked_into(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "x.png").mkdir()
    png(tmp_path / "x.png" / "y.png", photo)
    assert open_source(str(tmp_path), "image").keys() == ("x.png/y.png",)


def test_no_permission(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "a.png", photo)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        real = Path.open

        def refuse(self: Path, *args: object, **kwargs: object) -> object:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "open", refuse)
    assert fails(path, "image") == "permission denied"


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert fails(tmp_path / "a.png", "image") == "no such file or directory"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert fails(tmp_path / "a.png", "image") == "is not a regular file"


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.mp4", "libx264", "yuv420p"), ("a.mkv", "ffv1", "bgr0"), ("a.avi", "ffv1", "bgr0")]
)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_truncated_videos(
    tmp_path: Path,
    movie: np.ndarray,
    write_video: Callable[..., Path],
    name: str,
    codec: str,
    pixels: str,
    share: float,
) -> None:
    data = write_video(tmp_path / name, movie, codec, pixels).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert fails(tmp_path / name, "video")


def test_a_truncated_streamable_mp4(tmp_path: Path, movie: np.ndarray, write_video: Callable[..., Path]) -> None:
    import av

    write_video(tmp_path / "b.mp4", movie, "libx264", "yuv420p")
    with (
        av.open(str(tmp_path / "b.mp4")) as old,
        av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        track = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                new.mux(packet)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 9 // 10])
    assert "cut short" in fails(tmp_path / "a.mp4", "video")


def test_damage_in_the_middle_of_a_video(tmp_path: Path, movie: np.ndarray, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "a.mp4", movie, "libx264", "yuv420p", options={"g": "4"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 400] = np.random.Generator(np.random.PCG64(1)).bytes(400)
    path.write_bytes(data)
    assert fails(path, "video")


def test_a_video_without_pictures(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(track.encode(frame))
        container.mux(track.encode())
    assert fails(tmp_path / "a.mp4", "video") == "has no video track"


def test_a_video_without_sound(tmp_path: Path, movie: np.ndarray, write_video: Callable[..., Path]) -> None:
    write_video(tmp_path / "a.mp4", movie, "libx264", "yuv420p")
    assert fails(tmp_path / "a.mp4", "audio") == "has no sound track"


def test_a_playlist_does_not_open_other_files(
    tmp_path: Path, movie: np.ndarray, write_video: Callable[..., Path]
) -> None:
    real = write_video(tmp_path / "real.mkv", movie)
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {real}\n")
    (tmp_path / "b.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{real}\n#EXT-X-ENDLIST\n")
    assert fails(tmp_path / "a.mp4", "video")
    assert fails(tmp_path / "b.mp4", "video")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_not_a_number(tmp_path: Path, value: float) -> None:
    sound = np.zeros((100, 1), np.float32)
    sound[3] = value
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    assert fails(tmp_path / "a.wav", "audio") == "holds 1 NaN or infinite samples"


def test_sound_of_no_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 1)), 16_000)
    assert fails(tmp_path / "a.wav", "audio") == "holds no samples"


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_truncated_sound(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.Generator(np.random.PCG64(1)).uniform(-1, 1, (20_000, 1))
    soundfile.write(tmp_path / name, noise, 16_000)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert fails(tmp_path / name, "audio")


def test_a_sound_header_alone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((1000, 1)), 16_000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:44])
    assert "cut short" in fails(tmp_path / "a.wav", "audio")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_files_around_a_broken_one_are_read(tmp_path: Path, photo: np.ndarray, workers: int) -> None:
    for name in ("a.png", "b.png", "d.png"):
        png(tmp_path / name, photo)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    source = open_source(str(tmp_path), "image")
    entries = list(stream(source, source.keys(), PREPARE["image"], workers))
    assert [(entry.key, type(entry)) for entry in entries] == [
        ("a.png", Item),
        ("b.png", Item),
        ("c.png", Failure),
        ("d.png", Item),
    ]
    with pytest.raises(DecodeError, match=r"c\.png "):
        list(stream(source, source.keys(), PREPARE["image"], workers, fail_fast=True))
