"""What a reader of F-Sim relies on without any network: bins, counts, where faces are, what is said when all is absent."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tokbench.errors import NotApplicable, Undefined, UsageError, WeightsAbsent
from tokbench.metrics import _faces_packs as packs
from tokbench.metrics._faces_bins import parse_bins
from tokbench.metrics._faces_scene import annotated, overlap
from tokbench.metrics._faces_table import NO_FACE, OFF, OK, Scored, Table
from tokbench.metrics.faces import Faces, cosine
from tokbench.ratios import ratio
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample
from tokbench.weights import WeightsRefused

FIXTURE = json.loads((Path(__file__).parent / "faces_rows.json").read_text())
POINTS = [[20.0, 20.0], [40.0, 20.0], [30.0, 30.0], [22.0, 40.0], [38.0, 40.0]]


def sample(
    annotation: dict[str, object],
    shape: tuple[int, ...] = (3, 64, 96),
    key: str = "a.png",
    modality: Modality = "image",
    codec: object = None,
) -> Sample:
    x = torch.zeros(1, *shape)
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    return Sample((key,), x, x, x, Code(), spec, annotations=(annotation,), codec=codec)  # type: ignore[arg-type]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty home on a machine that has no face model."""
    for name in ("TOKBENCH_FACE_ONNX", "TOKBENCH_FACE_DETECTOR_ONNX", "TOKBENCH_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "case", FIXTURE["expected"], ids=lambda case: f"{case['bins']}-{case['modality']}-{case['size']}"
)
def test_bins_and_means_equal_the_published_arithmetic(case: dict[str, object]) -> None:
    """The stored numbers were computed from the edges and `np.mean`, as `compute_all_metrics.py` does it, without this code."""
    bins = parse_bins(str(case["bins"]), int(str(case["size"])))
    table = Table("x", bins, 0.4, False, bins.suffix)
    faces = [Scored(0, OK, None, face_ratio, value) for face_ratio, value in FIXTURE["faces"]]
    files = [faces[i::4] for i in range(4)]
    rows = [table.counts(str(case["modality"]), file) for file in files]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    known = {column.name: column for column in table.columns}
    keys = list("abcd")
    values = {}
    for label in bins.labels:
        pair = known[f"f_sim_{label}{bins.suffix}"].ratio
        assert pair is not None
        got = ratio(columns, keys, [pair])
        values[label] = got.value
        assert got.n == case[f"n_{label}"]
        assert got.value == (None if case[label] is None else pytest.approx(case[label], abs=1e-12))
    headline = ratio(columns, keys, [known[name].ratio or ("", "") for name in known[f"f_sim{bins.suffix}"].mean_of])
    assert headline.value == (None if case["mean"] is None else pytest.approx(case["mean"], abs=1e-12))
    whole = known[f"f_sim_all{bins.suffix}"].ratio
    assert whole is not None
    assert ratio(columns, keys, [whole]).value == pytest.approx(FIXTURE["mean_similarity"], abs=1e-12)


def test_the_two_published_sets_give_different_numbers_under_different_names() -> None:
    by_set = {(c["bins"], c["size"]): c["mean"] for c in FIXTURE["expected"] if c["modality"] == "image"}
    assert abs(by_set["2025-06", 256] - by_set["2025-05", 256]) > 0.05
    new, old = Faces(bins="2025-06").spec, Faces(bins="2025-05").spec
    assert {c.name for c in new.columns}.isdisjoint({c.name for c in old.columns})
    assert new.protocol["edges"] != old.protocol["edges"]
    assert new.name != old.name


def test_bins_are_half_open() -> None:
    bins = parse_bins("tokbench-face@2025-06", 256)
    assert [bins.place("image", r) for r in (0.0999, 0.1, 0.2, 0.3, 0.99, 1.0, None)] == [
        None, "small", "medium", "large", "large", None, None,
    ]  # fmt: skip
    assert parse_bins("0,0.5,1", 256).labels == ("bin1", "bin2")


@pytest.mark.parametrize("seed", range(5))
def test_every_face_is_counted_once_whatever_the_draw(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bins = parse_bins("0,0.1,0.2,0.3,1", 256)
    table = Table("x", bins, 0.3, True, "")
    status = rng.choice([OK, OFF, NO_FACE], 60)
    ratios, values = rng.random(60), rng.uniform(-1, 1, 60)
    faces = [
        Scored(0, s, None, float(r), float(v) if s == OK else None, bool(r > 0.5), bool(r > 0.7))
        for s, r, v in zip(status, ratios, values, strict=True)
    ]
    row = table.counts("image", faces)
    good = status == OK
    assert row["faces"] == (status != NO_FACE).sum()
    assert row["faces_unscored"] == (status == OFF).sum()
    assert sum(row[f"f_sim_{label}_faces"] for label in bins.labels) == row["f_sim_all_faces"] == good.sum()
    assert row["f_sim_all_sum"] == pytest.approx(values[good].sum(), abs=1e-12)
    assert row["f_sim_bin3_sum"] == pytest.approx(values[good & (ratios >= 0.2) & (ratios < 0.3)].sum(), abs=1e-12)
    assert row["faces_verified"] == (values[good] >= 0.3).sum()
    assert row["faces_found"] == ((ratios > 0.5) & (status != NO_FACE)).sum()
    assert row["faces_found_again"] == ((ratios > 0.7) & (status != NO_FACE)).sum()


def test_no_face_gives_zeros_and_a_record_not_a_gap() -> None:
    table = Table("x", parse_bins("2025-06", 256), 0.4, False, "")
    assert set(table.counts("image", [Scored(0, NO_FACE)]).values()) == {0.0}
    record = table.record("image", 0, Scored(3, NO_FACE))
    assert record["status"] == NO_FACE
    assert record["frame"] == 3
    assert record["similarity"] is None


def test_cosine_is_of_raw_vectors() -> None:
    a, b = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)
    assert cosine(a, b) == pytest.approx(24 / 25, abs=1e-15)
    assert cosine(a, 7 * a) == pytest.approx(1, abs=1e-15)
    assert cosine(a, np.zeros(2, np.float32)) == 0


def test_key_points_follow_a_resized_picture() -> None:
    scene = annotated(
        sample({"size": [128, 192], "faces": [{"kps": POINTS, "box": [10, 10, 50, 60]}]}, codec=object()), 0
    )
    assert scene is not None
    assert scene.faces[0].points == pytest.approx((np.array(POINTS) + 0.5) / 2 - 0.5)
    assert scene.faces[0].ratio == pytest.approx(50 / 192)


def test_key_points_of_a_cropped_picture_are_refused() -> None:
    with pytest.raises(NotApplicable, match="tokbench-pad"):
        annotated(sample({"size": [128, 128], "faces": [{"kps": POINTS}]}), 0)


def test_a_size_is_asked_for_where_the_picture_may_have_been_resized() -> None:
    with pytest.raises(Undefined, match="size"):
        annotated(sample({"faces": [{"kps": POINTS}]}, codec=object()), 0)
    assert annotated(sample({"faces": [{"kps": POINTS}]}), 0) is not None  # tokbench-pad: the file's own pixels


@pytest.mark.parametrize("faces", [{"kps": POINTS}, "none", [POINTS], None])
def test_an_annotation_of_another_form_is_undefined_not_empty(faces: object) -> None:
    with pytest.raises(Undefined, match="not a list of faces"):
        annotated(sample({"faces": faces}), 0)


def test_the_datasets_own_ratio_wins() -> None:
    face = {"kps": POINTS, "box": [0, 0, 48, 48], "ratio": 0.125}
    scene = annotated(sample({"faces": [face]}), 0)
    assert scene is not None
    assert scene.faces[0].ratio == 0.125


def test_frames_of_a_clip() -> None:
    faces = [{"frame": f, "kps": POINTS} for f in (3, 17, 18, 18, 40)]
    clip = sample({"size": [64, 96], "faces": faces, "frames": [19, 99]}, (3, 5, 64, 96), "a.mp4#000017", "video")
    scene = annotated(clip, 0)
    assert scene is not None
    assert scene.frames == (0, 1, 2)
    assert [face.frame for face in scene.faces] == [0, 1, 1]
    with pytest.raises(Undefined, match="frame"):
        annotated(sample({"size": [64, 96], "faces": [{"kps": POINTS}]}, (3, 5, 64, 96), "a.mp4", "video"), 0)


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 2, 3, 3)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "facenet"}, "antelopev2"),
        ({"bins": "2024-01"}, "2025-06"),
        ({"bins": "0.3,0.1"}, "increase"),
        ({"size": 300}, "256, 480, 512, 1024"),
        ({"bins": "2025-05", "size": 480}, "256, 512, 1024"),
        ({"threshold": 2.0}, "cosine"),
        ({"jpeg": 100}, "95"),
    ],
)
def test_a_wrong_option_says_what_there_is(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Faces(**options)  # type: ignore[arg-type]


def test_without_weights_the_spec_stands_and_the_first_use_says_what_to_do(bare: Path) -> None:
    spec = Faces(size=512, detector="pack").spec
    assert spec.protocol["recogniser"] == spec.protocol["detector"] == "absent"
    assert "non-commercial" in spec.summary
    assert Faces(size=512).spec.protocol["detector"] == "none"
    with pytest.raises(WeightsAbsent, match=r"antelopev2\.zip"):
        Faces()(sample({"faces": []}))
    with pytest.raises(WeightsAbsent, match="TOKBENCH_FACE_ONNX"):
        Faces(model="onnx")(sample({"faces": []}))
    with pytest.raises(UsageError, match="no such file"):
        Faces(model="onnx", weights=str(bare / "none.onnx"))(sample({"faces": []}))


@pytest.mark.parametrize("nested", [False, True])
def test_a_pack_of_insightface_is_found_and_checked(bare: Path, nested: bool) -> None:
    folder = bare / ".insightface" / "models" / "antelopev2"
    folder = folder / "antelopev2" if nested else folder
    folder.mkdir(parents=True)
    (folder / "glintr100.onnx").write_bytes(b"not it")
    with pytest.raises(WeightsRefused, match="glintr100"):
        packs.find("antelopev2", packs.RECOGNISER)
    assert packs.digest("antelopev2", packs.RECOGNISER) == "absent"
    with pytest.raises(WeightsRefused, match="model=onnx"):
        packs.find("antelopev2", packs.RECOGNISER, str(folder))
    (folder / "scrfd_10g_bnkps.onnx").write_bytes(b"another detector")
    named = str(folder / "scrfd_10g_bnkps.onnx")
    assert packs.find("antelopev2", packs.DETECTOR, named) == Path(named)  # named: may be any


def test_a_downloaded_pack_is_unpacked_once_and_checked(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bare / "weights" / "antelopev2"
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / "antelopev2.zip", "w") as archive:
        archive.writestr("antelopev2/glintr100.onnx", b"a network")
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(bare / "weights"))
    with pytest.raises(WeightsRefused, match="bytes"):
        packs.find("antelopev2", packs.RECOGNISER)  # not the published archive
    data = (home / "antelopev2.zip").read_bytes()
    known = packs.PACKS["antelopev2"]
    file = replace(known.files[packs.RECOGNISER], sha256=hashlib.sha256(b"a network").hexdigest(), size=9)
    mine = replace(
        known,
        files={packs.RECOGNISER: file},
        archive=replace(known.archive, sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
    )
    monkeypatch.setattr(packs, "PACKS", {"antelopev2": mine})
    packs.fetch("antelopev2", packs.RECOGNISER, "", offline=True)
    found = packs.find("antelopev2", packs.RECOGNISER)
    assert found is not None
    assert found.read_bytes() == b"a network"
    assert packs.require("antelopev2", packs.RECOGNISER) == found
    assert sorted(path.suffix for path in home.iterdir()) == [".onnx", ".zip"]


def test_only_images_and_video(bare: Path) -> None:
    spec = Faces(bins="2025-05", size=512).spec
    assert spec.modalities == ("image",)
    assert Faces(size=480).spec.modalities == ("video",)
    assert Faces(bins="0,1").spec.modalities == ("image", "video")
    assert not math.isnan(spec.columns[0].atol)
