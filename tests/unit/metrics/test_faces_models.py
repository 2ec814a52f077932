"""F-Sim with real networks on real faces: equal to insightface's own calls, and falling as pictures get worse."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from face_model import FaceModelAbsent, locate
from PIL import Image

from tokbench.data import Item, load, open_source
from tokbench.errors import NotApplicable, Undefined
from tokbench.evaluate import evaluate
from tokbench.metrics import _faces_nets as nets
from tokbench.metrics._faces_table import DEGENERATE, NO_FACE, OFF, OK
from tokbench.metrics.faces import Faces
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer, expand
from tokbench.spec import EvalProtocol, ImagePrepare, Modality, TokenizerSpec
from tokbench.types import Code, Sample
from tokbench.weights import WeightsRefused

Picture = Image.Image
Faces_ = list[dict[str, object]]
SOURCE = open_source("sample:faces", "image")
GROUP, ASTRONAUT = "faces/group", "faces/astronaut"


@pytest.fixture(scope="session")
def models() -> Mapping[str, Path]:
    """Return the test's networks, installing them where they are not; in CI their absence is a failure."""
    try:
        return locate()
    except FaceModelAbsent as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def face(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Faces]:
    """Return a maker of metrics that use the test's recogniser."""
    for name, path in models.items():
        monkeypatch.setenv(name, str(path))

    def make(**options: object) -> Faces:
        return Faces(model="onnx", **{"size": 512, **options})  # type: ignore[arg-type]

    return make


def picture(key: str) -> Picture:
    blob = SOURCE.open(key)
    return Image.open(str(blob.path)).convert("RGB")  # type: ignore[union-attr]


def jpeg(image: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def tensor(*images: Picture) -> torch.Tensor:
    planes = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images]
    return torch.stack(planes).float() / 255


def sample(
    reference: torch.Tensor,
    reconstruction: torch.Tensor,
    annotations: tuple[Mapping[str, object], ...],
    keys: tuple[str, ...] | None = None,
) -> Sample:
    modality: Modality = "image" if reference.ndim == 4 else "video"
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    names = keys or tuple(f"{i}.png" for i in range(len(reference)))
    return Sample(names, reference, reconstruction, reconstruction, Code(), spec, annotations=annotations)


def pair(key: str, change: Callable[[Picture], Picture]) -> Sample:
    image = picture(key)
    return sample(tensor(image), tensor(change(image)), (SOURCE.annotations(key),))


def similarities(metric: Faces, batch: Sample) -> list[float]:
    return [float(str(record["similarity"])) for record in metric.details(batch)[0]]


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated")  # insightface calls it
@pytest.mark.parametrize("key", [GROUP, ASTRONAUT])
def test_equal_to_insightface_one_face_at_a_time(
    key: str, face: Callable[..., Faces], models: Mapping[str, Path]
) -> None:
    from insightface.app.common import Face
    from insightface.model_zoo import get_model

    network = get_model(str(models["TOKBENCH_FACE_ONNX"]), providers=["CPUExecutionProvider"])
    before = picture(key)
    after = jpeg(before, 30)
    expected = []
    for known in SOURCE.annotations(key)["faces"]:  # type: ignore[attr-defined]
        a, b = (
            network.get(np.asarray(image)[:, :, ::-1], Face(kps=np.array(known["kps"]))) for image in (before, after)
        )
        expected.append(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    batch = pair(key, lambda image: jpeg(image, 30))
    metric = face()
    assert similarities(metric, batch) == pytest.approx(expected, abs=1e-5)
    values = metric(batch)
    assert values["f_sim_all_sum_onnx"].item() == pytest.approx(sum(expected), abs=1e-4)
    assert values["f_sim_all_faces_onnx"].item() == len(expected) == values["faces_onnx"].item()
    assert min(expected) > 0.5
    assert max(expected) < 0.999


def test_the_resize_row_is_the_upper_bound_and_f_sim_falls_with_jpeg_quality(face: Callable[..., Faces]) -> None:
    """Through the engine, the paper's preparation: long side to 512, and back to the file's own size."""
    prepare = ImagePrepare("tokbench-pad", 512)
    metric = face(detector="pack")
    protocol = EvalProtocol("image", prepare)
    items = [entry for key in (ASTRONAUT, GROUP) for entry in load(SOURCE, key, prepare)]
    assert all(isinstance(item, Item) for item in items)
    found = []
    for card in expand(["resize", *(f"jpeg?quality={q}" for q in (95, 75, 50, 30, 10, 5))]):
        tokenizer = build_tokenizer(card, {})
        result = evaluate(tokenizer, items, {metric.spec.name: metric}, protocol, engine=Engine())
        total = {name: sum(row.values[name] or 0 for row in result.rows) for name in result.rows[0].values}
        assert all(row.status == "ok" for row in result.rows)
        assert total["f_sim_all_faces_onnx"] == total["faces_onnx"] == 7
        assert [total[f"f_sim_{size}_faces_onnx"] for size in ("small", "medium", "large")] == [1, 5, 1]
        found.append(total["f_sim_all_sum_onnx"] / 7)
        if card.name == "resize":
            assert total["faces_found_again_onnx"] == total["faces_found_onnx"] == 7
            assert total["faces_verified_onnx"] == 7
    assert found[0] > 0.95
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.4


def test_smaller_faces_fall_earlier(face: Callable[..., Faces]) -> None:
    known = SOURCE.annotations(GROUP)
    metric = face()
    found = []
    for width in (1280, 640, 320):
        small = picture(GROUP).resize((width, width * 886 // 1280), Image.Resampling.LANCZOS)
        found.append(similarities(metric, sample(tensor(small), tensor(jpeg(small, 30)), (known,))))
    assert np.mean(found[0]) > np.mean(found[1]) + 0.05
    assert np.mean(found[1]) > np.mean(found[2]) + 0.05
    assert sum(a > b > c for a, b, c in zip(*found, strict=True)) >= 5


def test_an_identical_picture_has_one_and_another_person_has_little(face: Callable[..., Faces]) -> None:
    same = pair(GROUP, lambda image: image)
    assert similarities(face(), same) == pytest.approx([1] * 6, abs=1e-12)
    faces = SOURCE.annotations(GROUP)["faces"]
    moved = pair(GROUP, lambda image: image)
    shift = int(faces[2]["box"][0] - faces[0]["box"][0])  # type: ignore[index]
    other = torch.roll(moved.reference, -shift, 3)
    wrong = similarities(face(), sample(moved.reference, other, moved.annotations))
    assert max(wrong) < 0.45


def test_what_cannot_be_scored_has_a_record_and_the_rest_goes_on(face: Callable[..., Faces]) -> None:
    good = dict(SOURCE.annotations(ASTRONAUT)["faces"][0])  # type: ignore[index]
    faces: Faces_ = [
        good,
        {"kps": [[x + 5000, y] for x, y in good["kps"]], "box": [5000, 0, 5100, 100]},
        {"kps": [[9, 9]] * 5, "box": [0, 0, 20, 20]},
        {"kps": [[float("nan"), 1]] * 5},
        {"kps": [[x + 5000, y] for x, y in good["kps"]]},
        {"box": [0, 0, 20, 20]},
    ]
    image = tensor(picture(ASTRONAUT))
    batch = sample(image.repeat(2, 1, 1, 1), image.repeat(2, 1, 1, 1), ({"faces": faces}, {"faces": []}))
    metric = face()
    values, details = metric(batch), metric.details(batch)
    assert [record["status"] for record in details[0]] == [OK, OFF, DEGENERATE, DEGENERATE, OFF, DEGENERATE]
    assert details[0][0]["similarity"] == pytest.approx(1)
    assert [record["status"] for record in details[1]] == [NO_FACE]
    assert values["faces_onnx"].tolist() == [6, 0]
    assert values["faces_unscored_onnx"].tolist() == [5, 0]
    assert values["f_sim_all_faces_onnx"].tolist() == [1, 0]
    assert all(column[1] == 0 for column in values.values())


def test_no_key_points_and_no_detector_is_undefined(face: Callable[..., Faces]) -> None:
    image = tensor(picture(ASTRONAUT))
    with pytest.raises(Undefined, match="detector=pack"):
        face()(sample(image, image, ({},)))
    with pytest.raises(Undefined, match="boxes only"):
        face(detector="pack")(sample(image, image, ({},)))


def test_a_row_does_not_depend_on_its_batch(face: Callable[..., Faces]) -> None:
    image = picture(ASTRONAUT)
    known = SOURCE.annotations(ASTRONAUT)
    worse = tensor(jpeg(image, 10), jpeg(image, 40), jpeg(image, 90))
    together = face()(sample(tensor(image, image, image), worse, (known,) * 3))
    for i in range(3):
        alone = face()(sample(tensor(image), worse[i : i + 1], (known,)))
        assert {name: column[i].item() for name, column in together.items()} == {n: c.item() for n, c in alone.items()}


def test_a_second_tokenizer_does_not_embed_the_originals_again(
    face: Callable[..., Faces], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    embed = nets.Recogniser.embed

    def counting(self: nets.Recogniser, crops: list[list[np.ndarray]]) -> object:
        counted.append(sum(len(group) for group in crops))
        return embed(self, crops)

    monkeypatch.setattr(nets.Recogniser, "embed", counting)
    first, second = (pair(GROUP, lambda image, q=q: jpeg(image, q)) for q in (50, 20))  # type: ignore[misc]
    face()(first)
    assert counted == [6, 6]
    second.readings.update(first.readings)
    kept = face()(second)
    assert counted == [6, 6, 6]
    older = face(bins="2025-05")
    older.spec  # noqa: B018 - a second bin set in the same run
    older(second)
    assert counted == [6, 6, 6]
    assert kept == face()(pair(GROUP, lambda image: jpeg(image, 20)))


def test_a_reading_of_other_key_points_is_not_used(face: Callable[..., Faces]) -> None:
    first = pair(GROUP, lambda image: jpeg(image, 50))
    face()(first)
    faces = SOURCE.annotations(GROUP)["faces"][:2]  # type: ignore[index]
    image = picture(GROUP)
    changed = sample(tensor(image), tensor(image), ({"size": [886, 1280], "faces": faces},))
    changed.readings.update(first.readings)
    assert similarities(face(), changed) == pytest.approx([1, 1])


def test_batched_networks_give_what_single_calls_give(
    face: Callable[..., Faces], models: Mapping[str, Path], tmp_path: Path
) -> None:
    dynamic = with_free_batch(models["TOKBENCH_FACE_ONNX"], tmp_path / "dynamic.onnx")
    batch = pair(GROUP, lambda image: jpeg(image, 20))
    expected = similarities(face(), batch)
    metric = Faces(model="onnx", weights=str(dynamic), size=512)
    assert nets.load_recogniser(dynamic, "x", "cpu").batched
    again = sample(batch.reference, batch.reconstruction, batch.annotations)
    assert similarities(metric, again) == pytest.approx(expected, abs=1e-5)
    assert metric.spec.protocol["recogniser"] != face().spec.protocol["recogniser"]


def with_free_batch(path: Path, out: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    shape = next(node for node in model.graph.node if node.op_type == "Reshape").input[1]
    constant = next(entry for entry in model.graph.initializer if entry.name == shape)
    constant.CopyFrom(numpy_helper.from_array(np.array([-1, 512], np.int64), shape))
    onnx.save(model, str(out))
    return out


def test_a_clip_is_scored_frame_by_frame(face: Callable[..., Faces]) -> None:
    image = picture(ASTRONAUT)
    known = SOURCE.annotations(ASTRONAUT)["faces"][0]  # type: ignore[index]
    before = tensor(image, image, image).permute(1, 0, 2, 3)[None]
    after = tensor(image, jpeg(image, 10), image).permute(1, 0, 2, 3)[None]
    annotation = {
        "size": [512, 512],
        "frames": [4, 6],
        "faces": [{**known, "frame": 5}, {**known, "frame": 4}, {**known, "frame": 90}],
    }
    metric = face(size=480)
    batch = sample(before, after, (annotation,), ("clip.mp4#000004",))
    records = metric.details(batch)[0]
    assert [(r["frame"], r["status"]) for r in records] == [(1, OK), (0, OK), (2, NO_FACE)]
    assert records[0]["similarity"] < 0.9 < records[1]["similarity"]  # type: ignore[operator]
    values = metric(batch)
    assert values["f_sim_large_faces_onnx"].item() == 2
    with pytest.raises(NotApplicable, match="image"):
        face(size=480)(sample(before[:, :, 0], after[:, :, 0], (annotation,)))


def test_detection_survives_what_it_can(face: Callable[..., Faces]) -> None:
    metric = face(detector="pack")
    for change, again in ((lambda image: jpeg(image, 30), 6), (lambda image: Image.new("RGB", image.size, "grey"), 0)):
        batch = pair(GROUP, change)
        values = metric(batch)
        assert values["faces_found_onnx"].item() == 6
        assert values["faces_found_again_onnx"].item() == again
        assert all(record["found"] for record in metric.details(batch)[0])


def test_the_jpeg_mode_is_pillows_file_of_that_quality(face: Callable[..., Faces]) -> None:
    clean = pair(ASTRONAUT, lambda image: image.resize((256, 256)).resize((512, 512)))
    saved = sample(
        clean.reference,
        tensor(jpeg(picture(ASTRONAUT).resize((256, 256)).resize((512, 512)), 75)),
        clean.annotations,
    )
    through, plain = face(jpeg=75), face()
    assert similarities(through, clean) == similarities(plain, saved)
    assert similarities(through, clean) != similarities(plain, clean)
    assert through.spec.name == "face_onnx_jpeg75"


def test_faces_of_a_picture_without_key_points_come_from_scrfd(face: Callable[..., Faces], tmp_path: Path) -> None:
    """An SCRFD network whose answer is known: one face, where the astronaut's is; insightface decodes it."""
    known = SOURCE.annotations(ASTRONAUT)["faces"][0]  # type: ignore[index]
    path = constant_scrfd(tmp_path / "scrfd.onnx", known["box"], known["kps"], 640 / 512)
    metric = face(detector=str(path))
    before = tensor(picture(ASTRONAUT))
    after = tensor(jpeg(picture(ASTRONAUT), 20))
    found = sample(before, after, ({},))
    record = metric.details(found)[0]
    assert [r["status"] for r in record] == [OK]
    assert [record[0][side] for side in ("left", "top", "right", "bottom")] == pytest.approx(known["box"], abs=0.01)
    stored = sample(before, after, (SOURCE.annotations(ASTRONAUT),))
    assert record[0]["similarity"] == pytest.approx(similarities(face(), stored)[0], abs=1e-3)
    values = metric(found)
    assert values["faces_found_again_onnx"].item() == values["f_sim_large_faces_onnx"].item() == 1


def constant_scrfd(path: Path, box: list[float], points: list[list[float]], scale: float) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stride, anchors, cell = 16, 2, (13, 17)  # row and column near the face's middle
    centre = np.array([cell[1] * stride, cell[0] * stride], np.float32)
    edges = np.asarray(box, np.float32).reshape(2, 2) * scale
    near = np.concatenate([centre - edges[0], edges[1] - centre]) / stride
    marks = (np.asarray(points, np.float32) * scale - centre).flatten() / stride
    nodes, outputs, constants = [], [], []
    nodes.append(helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0))
    constants.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    for width, row in ((1, np.ones(1)), (4, near), (10, marks)):
        for step in (8, 16, 32):
            table = np.zeros(((640 // step) ** 2 * anchors, width), np.float32)
            if step == stride:
                table[(cell[0] * (640 // step) + cell[1]) * anchors] = row
            name = f"{width}_{step}"
            constants.append(numpy_helper.from_array(table, f"table_{name}"))
            nodes.append(helper.make_node("Add", [f"table_{name}", "nothing"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(table.shape)))
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "scrfd", [entry], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), str(path))
    return path


def test_a_file_that_is_no_recogniser_or_detector_is_refused(
    face: Callable[..., Faces], models: Mapping[str, Path], tmp_path: Path
) -> None:
    image = tensor(picture(ASTRONAUT))
    batch = sample(image, image, (SOURCE.annotations(ASTRONAUT),))
    with pytest.raises(WeightsRefused, match="no ArcFace"):
        Faces(model="onnx", weights=str(models["TOKBENCH_FACE_DETECTOR_ONNX"]))(batch)
    with pytest.raises(WeightsRefused, match="no face detector"):
        face(detector=str(models["TOKBENCH_FACE_ONNX"]))(batch)
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    with pytest.raises(WeightsRefused, match="cannot be read"):
        Faces(model="onnx", weights=str(junk))(batch)
