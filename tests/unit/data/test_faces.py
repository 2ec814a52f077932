"""Face datasets as they lie on disk, and the built-in faces: what the metric is told of each picture."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokbench.data import Failure, Item, load, manifest, open_source
from tokbench.errors import UsageError
from tokbench.spec import ImagePrepare

FIVE = [[10.0, 12.0], [20.0, 12.0], [15.0, 18.0], [11.0, 24.0], [19.0, 24.0]]


def save(path: Path, size: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(shade).save(path)
    return path


def wflw_line(name: str, shift: float = 0.0, box: bool = True) -> str:
    points = np.full((98, 2), 15.0) + np.linspace(-5, 5, 98)[:, None]
    points[[96, 97, 54, 76, 82]] = FIVE
    numbers = [*(points + shift).flatten(), *([5, 6, 25, 30, 0, 0, 0, 0, 0, 0] if box else [])]
    return " ".join(f"{value:g}" for value in numbers) + f" {name}\n"


def test_the_built_in_faces_are_seven_and_their_points_lie_in_their_boxes() -> None:
    source = open_source("sample:faces", "image")
    assert source.keys() == ("faces/astronaut", "faces/group")
    count = 0
    for key in source.keys():  # noqa: SIM118 - a source is no mapping
        entry = load(source, key, ImagePrepare("native", None))[0]
        assert isinstance(entry, Item)
        assert list(entry.signal.shape[1:]) == entry.annotations["size"]
        for face in entry.annotations["faces"]:  # type: ignore[attr-defined]
            left, top, right, bottom = face["box"]
            points = np.array(face["kps"])
            assert points.shape == (5, 2)
            assert ((points > (left, top)) & (points < (right, bottom))).all()
            assert points[0, 0] < points[1, 0]  # the eye on the viewer's left comes first
            assert points[:2, 1].max() < points[2, 1] < points[3:, 1].max()
            count += 1
    assert count == 7


def test_wflw_lists_a_line_a_face(tmp_path: Path) -> None:
    save(tmp_path / "WFLW_images" / "0--Parade" / "a.jpg")
    save(tmp_path / "WFLW_images" / "unlisted.jpg")
    folder = tmp_path / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    folder.mkdir(parents=True)
    lines = wflw_line("0--Parade/a.jpg") + wflw_line("0--Parade/a.jpg", 3.0) + wflw_line("1--Gone/b.jpg")
    (folder / "list_98pt_rect_attr_test.txt").write_text(lines)
    source = open_source(f"wflw:{tmp_path}", "image")
    assert source.keys() == ("0--Parade/a.jpg", "1--Gone/b.jpg")
    assert source.ignored == 1
    found = source.annotations("0--Parade/a.jpg")
    assert found["size"] == [40, 60]
    faces = found["faces"]
    assert np.array(faces[0]["kps"]) == pytest.approx(np.array(FIVE))  # type: ignore[index]
    assert np.array(faces[1]["kps"]) == pytest.approx(np.array(FIVE) + 3)  # type: ignore[index]
    assert faces[0]["box"] == [5, 6, 25, 30]  # type: ignore[index]
    assert isinstance(load(source, "1--Gone/b.jpg", ImagePrepare("native", None))[0], Failure)
    assert pickle.loads(pickle.dumps(source)).keys() == source.keys()


def test_a_wflw_list_without_boxes_takes_the_points_extent(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    (tmp_path / "faces.txt").write_text(wflw_line("a.jpg", box=False))
    source = open_source(f"wflw:{tmp_path}?list={tmp_path / 'faces.txt'}", "image")
    face = source.annotations("a.jpg")["faces"][0]  # type: ignore[index]
    assert face["box"] == pytest.approx([10, 10, 20, 24], abs=0.2)


def test_a_broken_wflw_list_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="list="):
        open_source(f"wflw:{tmp_path}", "image").keys()
    (tmp_path / "list_98pt_test.txt").write_text(wflw_line("a.jpg", box=False) + "1 2 3 a.jpg\n")
    with pytest.raises(UsageError, match=r"line 2: 3 numbers"):
        open_source(f"wflw:{tmp_path}", "image").keys()


def test_lfw_knows_who_and_leaves_where_to_a_detector(tmp_path: Path) -> None:
    for name in ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg", "Bo_Ek/Bo_Ek_0001.jpg"):
        save(tmp_path / name)
    source = open_source(f"lfw:{tmp_path}", "image")
    assert len(source.keys()) == 3
    assert source.annotations("Bo_Ek/Bo_Ek_0001.jpg") == {"identity": "Bo_Ek"}


@pytest.mark.parametrize("form", ["corners", "size", "unclear"])
def test_tokbench_faces(tmp_path: Path, form: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / "images" / "face_data" / name)
    boxes = {"corners": [4, 6, 26, 32], "size": [4, 6, 22, 26], "unclear": [900, 900, 901, 901]}
    faces = [{"kps": FIVE, "box": boxes[form], "ratio": 0.37, "gt": "face"}]
    table = [
        {"image_name": name, "img_height": 40, "img_width": 60, "faces": found}
        for name, found in (("a.jpg", faces), ("b.jpg", []))
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "face_meta.json").write_text(json.dumps(table))
    source = open_source(f"tokbench-face:{tmp_path}", "image")
    assert source.annotations("b.jpg") == {"size": [40, 60], "faces": []}
    face = source.annotations("a.jpg")["faces"][0]  # type: ignore[index]
    assert face["ratio"] == 0.37
    assert face["kps"] == FIVE
    assert face.get("box") == (None if form == "unclear" else [4, 6, 26, 32])
    assert isinstance(load(source, "a.jpg", ImagePrepare("tokbench-pad", 32))[0], Item)


def test_other_key_points_are_another_dataset(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    digests = set()
    for shift in (0.0, 1.0):
        (tmp_path / "list_98pt_test.txt").write_text(wflw_line("a.jpg", shift))
        digests.add(manifest(open_source(f"wflw:{tmp_path}", "image"), tmp_path / "cache").digest)
    assert len(digests) == 2


def test_wrong_addresses_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="list"):
        open_source(f"wflw:{tmp_path}?split=test", "image")
    with pytest.raises(UsageError, match="not video"):
        open_source(f"lfw:{tmp_path}", "video")
    with pytest.raises(UsageError, match=r"face_meta\.json"):
        open_source(f"tokbench-face:{tmp_path}", "image").keys()
    with pytest.raises(UsageError, match="not a folder"):
        open_source(f"lfw:{tmp_path}/none", "image").keys()
