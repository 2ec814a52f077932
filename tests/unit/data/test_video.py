"""Videos are cut into clips exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokbench.data import Failure, Item, load, open_source
from tokbench.errors import UsageError
from tokbench.spec import VideoPrepare


def clips(path: Path, **prepare: object) -> tuple[Item, ...]:
    source = open_source(str(path), "video")
    found = load(source, path.name, VideoPrepare(preset="native", size=None, **prepare))  # type: ignore[arg-type]
    assert all(isinstance(item, Item) for item in found), found
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [("a.mkv", "ffv1", "bgr0", {}), ("a.mp4", "libx264rgb", "rgb24", {"crf": "0"})],
)
def test_lossless_videos_are_cut_into_exact_consecutive_clips(
    tmp_path: Path, movie: np.ndarray, write_video, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    found = clips(write_video(tmp_path / name, movie, codec, pixels, options=options), frames=9)
    assert [item.key for item in found] == [f"{name}#000000", f"{name}#000009"]
    assert {item.group for item in found} == {name}
    assert {item.fps for item in found} == {25.0}
    for item, start in zip(found, (0, 9), strict=True):
        assert item.signal.dtype == np.uint8
        np.testing.assert_array_equal(item.signal, movie[start : start + 9].transpose(3, 0, 1, 2))
    assert found[0].notes == ()
    assert found[-1].notes == ("last 5 frames left out",)


def test_clips_is_a_cap(tmp_path: Path, movie: np.ndarray, write_video) -> None:
    found = clips(write_video(tmp_path / "a.mkv", movie), frames=5, clips=2)
    assert [item.key for item in found] == ["a.mkv#000000", "a.mkv#000005"]
    assert found[-1].notes == ()


def test_a_video_shorter_than_a_clip_fails(tmp_path: Path, movie: np.ndarray, write_video) -> None:
    source = open_source(str(write_video(tmp_path / "a.mkv", movie)), "video")
    (failure,) = load(source, "a.mkv", VideoPrepare(preset="native", size=None, frames=24))
    assert failure == Failure("a.mkv", "a.mkv", "has 23 frames, fewer than the 24 of a clip")


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (25.0, list(range(23))),
        (12.5, list(range(0, 23, 2))),
        (50.0, [k // 2 for k in range(46)]),  # odd k lies between two frames: the earlier one
        (10.0, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),
    ],
)
def test_a_frame_rate_takes_the_nearest_frames(
    tmp_path: Path, movie: np.ndarray, write_video, fps: float, expected: list[int]
) -> None:
    found = clips(write_video(tmp_path / "a.mkv", movie), frames=len(expected), fps=fps)
    (item,) = found
    assert item.fps == fps
    np.testing.assert_array_equal(item.signal, movie[expected].transpose(3, 0, 1, 2))
    assert item.notes == ()


def test_uneven_timestamps_are_resampled_by_time(tmp_path: Path, movie: np.ndarray, write_video) -> None:
    # Frames at 0, 1, 2, 10, 11 twenty-fifths of a second.
    path = write_video(tmp_path / "a.mkv", movie[:5], times=[0, 1, 2, 10, 11])
    item = clips(path, frames=12, fps=25.0)[0]
    np.testing.assert_array_equal(item.signal, movie[[0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4]].transpose(3, 0, 1, 2))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_display_rotation_is_applied(tmp_path: Path, movie: np.ndarray, write_video, degrees: int) -> None:
    path = write_video(tmp_path / "a.mp4", movie[:4], "libx264rgb", "rgb24", options={"crf": "0"}, degrees=degrees)
    (item,) = clips(path, frames=4)
    expected = np.rot90(movie[:4], degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(item.signal, expected.transpose(3, 0, 1, 2))
    assert item.notes == (f"rotated by {degrees} degrees",)


def test_colour_follows_the_matrix_of_the_stream(tmp_path: Path, write_video) -> None:
    flat = np.empty((3, 32, 32, 3), np.uint8)
    flat[:] = (200, 60, 40)
    # Chroma-subsampled and rounded to 8 bits on the way, so within a few levels.
    (item,) = clips(write_video(tmp_path / "a.mp4", flat, "libx264", "yuv420p", options={"crf": "1"}), frames=3)
    assert np.abs(item.signal.reshape(3, -1).mean(1) - (200, 60, 40)).max() < 3


def test_frames_go_through_the_image_presets(tmp_path: Path, movie: np.ndarray, write_video) -> None:
    from PIL import Image

    from tokbench.prepare.image import apply_image
    from tokbench.spec import ImagePrepare

    source = open_source(str(write_video(tmp_path / "a.mkv", movie)), "video")
    for preset in ("adm", "tokbench-pad"):
        items = load(source, "a.mkv", VideoPrepare(preset=preset, size=16, frames=4, clips=1))  # type: ignore[arg-type]
        (item,) = items
        assert isinstance(item, Item)
        expected = [apply_image(Image.fromarray(frame), ImagePrepare(preset=preset, size=16)) for frame in movie[:4]]  # type: ignore[arg-type]
        np.testing.assert_array_equal(item.signal, np.stack([each.signal for each in expected], 1))
        assert item.padding == expected[0].padding
        if preset == "tokbench-pad":
            assert item.original is not None
            np.testing.assert_array_equal(item.original, movie[:4].transpose(3, 0, 1, 2))
        else:
            assert item.original is None


def test_impossible_clips_are_a_usage_error(tmp_path: Path, movie: np.ndarray, write_video) -> None:
    source = open_source(str(write_video(tmp_path / "a.mkv", movie)), "video")
    with pytest.raises(UsageError, match="at least 1"):
        load(source, "a.mkv", VideoPrepare(preset="native", size=None, frames=0))
