"""Text datasets give each image its words, in whatever form they were published."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokbench.data import Failure, Item, manifest, open_source, stream
from tokbench.data.samples.words import make_words, word_annotations
from tokbench.errors import UsageError
from tokbench.spec import ImagePrepare

PAD = ImagePrepare(preset="tokbench-pad", size=64)


def picture(path: Path, width: int = 80, height: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.Generator(np.random.PCG64(width)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def tokbench(root: Path, **sets: Sequence[Mapping[str, object]]) -> str:
    (root / "annotations").mkdir(exist_ok=True)
    for name, entries in sets.items():
        (root / "annotations" / f"text_{name}.json").write_text(json.dumps(entries))
    return f"tokbench-text:{root}"


def entry(name: str, *words: Mapping[str, object]) -> dict[str, object]:
    return {"file_name": name, "height": 60, "width": 80, "annotations": list(words)}


EXIT = {"rec": "EXIT", "bbox": [1, 2, 41, 12], "ratio": 0.125}


def test_tokbench_layout(tmp_path: Path) -> None:
    for name in ("ic13/a.png", "tt/b.png", "tt/unnamed.png"):
        picture(tmp_path / "images" / "text_data" / name)
    uri = tokbench(tmp_path, ic13=[entry("a.png", EXIT), entry("gone.png", EXIT)], tt=[entry("b.png")])
    source = open_source(uri, "image")
    assert source.keys() == ("ic13/a.png", "ic13/gone.png", "tt/b.png")
    assert source.ignored == 1
    a, gone, b = stream(source, source.keys(), PAD)
    assert isinstance(a, Item)
    assert isinstance(b, Item)
    assert a.annotations == {
        "size": [60, 80],
        "words": [{"text": "EXIT", "box": [1, 2, 41, 12], "ratio": 0.125}],
    }
    assert a.original is not None
    assert a.original.shape == (3, 60, 80)
    assert b.annotations["words"] == []
    assert isinstance(gone, Failure)
    assert gone.reason == "no such file or directory"
    assert open_source(f"{uri}?set=tt", "image").keys() == ("tt/b.png",)
    again = pickle.loads(pickle.dumps(source))
    assert again.keys() == source.keys()


def test_other_words_make_another_manifest(tmp_path: Path) -> None:
    picture(tmp_path / "text_data" / "ic13" / "a.png")
    cache = tmp_path / "cache"
    first = manifest(open_source(tokbench(tmp_path, ic13=[entry("a.png", EXIT)]), "image"), cache)
    same = manifest(open_source(tokbench(tmp_path, ic13=[entry("a.png", EXIT)]), "image"), cache)
    other = manifest(open_source(tokbench(tmp_path, ic13=[entry("a.png", {**EXIT, "rec": "EXIL"})]), "image"), cache)
    assert first == same
    assert first.keys == other.keys
    assert first.digest != other.digest


def test_coco_text(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png")
    picture(tmp_path / "train" / "2.png")
    table = {
        "imgs": {
            "1": {"id": 1, "file_name": "1.png", "height": 60, "width": 80, "set": "train"},
            "2": {"id": 2, "file_name": "2.png", "height": 60, "width": 80, "set": "val"},
        },
        "anns": {
            "7": {"id": 7, "image_id": 1, "bbox": [10, 20, 30.5, 8], "utf8_string": "Stop", "legibility": "legible"},
            "8": {"id": 8, "image_id": 1, "bbox": [0, 0, 5, 5], "legibility": "illegible"},
        },
    }
    (tmp_path / "truth.json").write_text(json.dumps(table))
    uri = f"coco-text:{tmp_path}/train?truth={tmp_path}/truth.json"
    source = open_source(uri, "image")
    assert source.keys() == ("1.png", "2.png")
    assert source.annotations("1.png") == {
        "size": [60, 80],
        "words": [
            {"text": "Stop", "box": [10.0, 20.0, 40.5, 28.0]},
            {"text": "", "box": [0.0, 0.0, 5.0, 5.0], "ignore": True},
        ],
    }
    assert source.annotations("2.png")["words"] == []
    assert open_source(f"{uri}&set=val", "image").keys() == ("2.png",)
    lists = {"images": list(table["imgs"].values()), "annotations": list(table["anns"].values())}
    (tmp_path / "truth.json").write_text(json.dumps(lists))
    assert open_source(uri, "image").annotations("1.png") == source.annotations("1.png")


def test_icdar_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "nobody.png"):
        picture(tmp_path / "images" / name)
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "gt_a.txt").write_text("\ufeff1,2,41,2,41,12,1,12,Hello, you\r\n5,5,9,5,9,9,5,9,###\r\n", encoding="utf-8")
    (truth / "gt_b.txt").write_text('38 43 79 55 "Tiredness"\n1, 2, 30, 12, "12,5"\n', encoding="utf-8")
    (truth / "c.txt").write_text("what is this\n", encoding="utf-8")
    source = open_source(f"icdar:{tmp_path}/images?truth={truth}", "image")
    assert source.keys() == ("a.png", "b.png", "c.png")
    assert source.ignored == 1
    assert source.annotations("a.png") == {
        "size": [60, 80],
        "words": [
            {"text": "Hello, you", "polygon": [[1, 2], [41, 2], [41, 12], [1, 12]]},
            {"text": "###", "polygon": [[5, 5], [9, 5], [9, 9], [5, 9]], "ignore": True},
        ],
    }
    assert source.annotations("b.png")["words"] == [
        {"text": "Tiredness", "box": [38, 43, 79, 55]},
        {"text": "12,5", "box": [1, 2, 30, 12]},
    ]
    _, _, broken = stream(source, source.keys(), PAD)
    assert isinstance(broken, Failure)
    assert "c.txt, line 1: neither 4 nor 8 numbers and a text" in broken.reason
    assert dict(manifest(source, tmp_path / "cache").entries)["c.png"] == "unreadable"


def test_words_belong_to_a_turned_photograph_as_it_is_decoded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: the file's rows are the picture's columns
    Image.new("RGB", (80, 60), "white").save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "gt_a.txt").write_text("1,2,30,12,EXIT\n")
    source = open_source(f"icdar:{tmp_path}", "image")
    (decoded,) = stream(source, ["a.jpg"], ImagePrepare("native", None))
    assert isinstance(decoded, Item)
    assert list(decoded.signal.shape[1:]) == decoded.annotations["size"] == [80, 60]


def test_wrong_addresses_and_files_say_what_is_wrong(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    uri = tokbench(tmp_path, ic13=[{"file_name": "a.png", "annotations": []}])
    (tmp_path / "odd.json").write_text("[1, 2]")
    for address, message in (
        (uri, "text_ic13.json: image 'a.png' has no 'height'"),
        (f"{uri}?set=ic14", "no text_ic14.json .* there is ic13"),
        (f"{uri}?sets=ic13", "unknown option 'sets'; there is set"),
        (f"tokbench-text:{tmp_path}/nowhere", "nowhere is not a folder"),
        (f"coco-text:{tmp_path}", "names no annotations; add .truth="),
        (f"coco-text:{tmp_path}?truth={tmp_path}/odd.json", "holds no COCO-Text annotations"),
        (f"coco-text:{tmp_path}?truth={tmp_path}/none.json", "cannot be read"),
        (f"icdar:{tmp_path}", "holds no image with words"),
        (f"icdar:{tmp_path}?truth={tmp_path}/nowhere", "is not a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(address, "image").keys()
    with pytest.raises(UsageError, match="holds images, not audio"):
        open_source(uri, "audio")


def test_rendered_words_stand_in_their_boxes() -> None:
    for name in ("plain-1", "plain-3"):
        image = make_words(name).array.astype(int)
        words = word_annotations(name)["words"]
        assert isinstance(words, list)
        ground = image[0, 0]
        outside = np.ones(image.shape[:2], bool)
        for word in words:
            left, top, right, bottom = word["box"]
            assert 0 <= left < right <= 512
            assert 0 <= top < bottom <= 512
            inside = (image[top:bottom, left:right] != ground).any(-1)
            rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
            found = (columns[0], rows[0], right - left - 1 - columns[-1], bottom - top - 1 - rows[-1])
            assert found == (2, 2, 2, 2)  # two pixels around the ink on every side
            outside[top:bottom, left:right] = False
        assert (image[outside] == ground).all()
        assert len({word["text"] for word in words}) > 30


def test_the_words_set_is_twelve_pages_of_mixed_case_and_digits() -> None:
    source = open_source("sample:words", "image")
    assert len(source.keys()) == 12
    texts = [word["text"] for key in source.keys() for word in source.annotations(key)["words"]]  # type: ignore[attr-defined]  # noqa: SIM118
    assert 400 < len(texts) < 1000
    for kind in (
        str.islower,
        str.isupper,
        str.isdigit,
        str.istitle,
        lambda text: text.isalnum() and not text.isalpha(),
    ):
        assert sum(map(kind, texts)) > 20
    assert np.array_equal(make_words("coffee").array, make_words("coffee").array)
