"""Text that survives a tokenizer: words read on the reconstruction against the ground truth, by scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.spec import MetricSpec
from tokbench.types import Sample, readings

from . import _backbones
from . import _ocr_easyocr as easyocr
from . import _ocr_parseq as parseq
from ._audio import columns
from ._ocr import Pixels, Recogniser, Region, pixels
from ._ocr_score import Scored, score_columns, tally
from ._ocr_words import NOT_LEGIBLE, OK, Bins, Word, parse_bins, status, words_of
from ._rows import checked_pair

_START = re.compile(r"#(\d+)$")


_RATIO = "longer side of the box / characters / longer side of the image"

Record = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Judged:
    """A word and, where it is to be read, its place and, in a clip, the index of its frame there."""

    score: Scored
    region: Region | None = None
    frame: int = 0


@dataclass(frozen=True)
class Reader:
    """A recogniser that is not loaded yet.

    Attributes:
        name: As metric and columns spell it.
        about: What it is, for the protocol: network and decoding.
        digest: Gives the sha256 of the weights that will be used, or `absent`, from the user's `weights`.
        load: Builds it from the user's `weights` for a device; raises WeightsAbsent.
        fetch: Downloads the weights where they are absent and may be had (not offline).
    """

    name: str
    about: str
    summary: str
    digest: Callable[[str], str]
    load: Callable[[str, str], Recogniser]
    fetch: Callable[[str, bool], None] = lambda _weights, _offline: None


EASYOCR = Reader(
    name="easyocr",
    about="easyocr english_g2, greedy",
    summary="Words read by EasyOCR at annotated boxes",
    digest=lambda weights: easyocr.digest(easyocr.RECOGNISER, weights),
    load=lambda weights, device: easyocr.load_recogniser(easyocr.require(easyocr.RECOGNISER, weights), device),
)
PARSEQ = Reader(
    name="parseq",
    about="docTR parseq v0.7.0, french vocabulary, refined once",
    summary="Words read by docTR's PARSeq, TokBench's recogniser, at annotated boxes",
    digest=lambda weights: _backbones.digest(parseq.WEIGHTS, weights),
    load=lambda weights, device: parseq.load(_backbones.require(parseq.WEIGHTS, weights), device),
    fetch=lambda weights, offline: _backbones.fetch(parseq.WEIGHTS, weights, offline),
)


def text_easyocr(*, bins: str | float = "256", select: str = "all", jpeg: int = 0, weights: str = "") -> AnnotatedText:
    """Text read by EasyOCR's English recogniser at the annotated boxes: `t_acc_easyocr`, `t_ned_easyocr`, ….

    The strings are those of `easyocr.Reader(['en']).recognize` on the same boxes. It is not the recogniser of TokBench
    (`text_parseq` is), so the numbers stand beside the published ones, not among them; its weights anyone can get.

    Args:
        bins: As `AnnotatedText`.
        select: As `AnnotatedText`.
        jpeg: As `AnnotatedText`.
        weights: `english_g2.pth` or its folder, where it is in no usual place.
    """
    return AnnotatedText(EASYOCR, bins, select, jpeg, weights)


def text_parseq(*, bins: str | float = "256", select: str = "all", jpeg: int = 0, weights: str = "") -> AnnotatedText:
    """Text read by PARSeq, the recogniser of TokBench, at the annotated boxes: `t_acc_parseq`, `t_ned_parseq`, ….

    The network, preprocessing and decoding are docTR's, on docTR's published weights. Two things of TokBench's script are
    not repeated: it gives the recogniser the ground truth, which cuts every reading at the length of the longest word among
    64; and it leaves out all 64 words when one of them has a character outside the vocabulary.

    Args:
        bins: As `AnnotatedText`.
        select: As `AnnotatedText`.
        jpeg: As `AnnotatedText`.
        weights: docTR's `parseq-56125471.pt` where it is in no usual place.
    """
    return AnnotatedText(PARSEQ, bins, select, jpeg, weights)


@dataclass(frozen=True)
class AnnotatedText:
    """Ground truth from the dataset: strings and boxes, read by one recogniser.

    T-ACC is the share of words read exactly, T-NED the mean of 1 - edit distance / longer length, both by TokBench's
    arithmetic: case counts, nothing is normalised, scale bins of the box length per character over the image's long side,
    and a headline that is the plain mean of the bins. Beside them: exact match of letters and digits alone whatever their
    case, CER and WER of the scored words, and T-ACC of the references, which no tokenizer can be asked to exceed.

    Words are read once on the references for all tokenizers (`tokbench.types.Reading`). Every annotated word is a record in
    the row's details with its status; words that cannot be scored (too small for the bins, off the image, out of the
    recogniser's vocabulary) count in `text_coverage_*` and nowhere else. An image without words is a row of zeros.

    In a clip, words belong to frames: `frame` is the index in the file, and the clip's key says where it starts.

    Args:
        reader: The recogniser.
        bins: `256`, `512`, `1024` (TokBench's edges for the resolution), `video-256`, `video-480`, or edges `0.01/0.02/1`.
        select: `all` words, or `legible`: only those read exactly on the reference, as TokBench chose its words.
        jpeg: Quality of a JPEG between reconstruction and recogniser, for files named .jpg or .jpeg; 0 for none. TokBench's
            scripts keep file names and so save those with quality 75: `jpeg=75` is that, for comparisons with its board, and
            its columns end in `_jpeg75`. Images only.
        weights: Of the recogniser, where they are in no usual place.

    Raises:
        UsageError: `bins`, `select` or `jpeg` is not one of those.

    Reference: TokBench, arXiv 2505.18142, eval_text.py and compute_all_metrics.py.
    """

    reader: Reader
    bins: str | float = "256"
    select: str = "all"
    jpeg: int = 0
    weights: str = ""

    undefined: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self._edges()
        if self.jpeg and not 1 <= self.jpeg <= 95:
            raise UsageError(
                f"text_{self.reader.name}: jpeg={self.jpeg}; give a quality from 1 to 95, or 0 for no JPEG"
            )
        if self.select not in {"all", "legible"}:
            raise UsageError(f"text_{self.reader.name}: select={self.select} is neither all nor legible")

    def _edges(self) -> Bins:
        return parse_bins(f"text_{self.reader.name}", self.bins)

    @property
    def _suffix(self) -> str:
        return self.reader.name + (f"_jpeg{self.jpeg}" if self.jpeg else "")

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the recogniser's sha256 is one of them."""
        return MetricSpec(
            name=f"text_{self._suffix}",
            modalities=("image", "video"),
            columns=score_columns(self._edges().names, self._suffix, on_reference=True),
            summary=self.reader.summary,
            reference="TokBench, arXiv 2505.18142",
            protocol={
                "bins": list(self._edges().edges),
                "select": self.select,
                "jpeg": self.jpeg,
                "crop": "upright box, whole pixels, clipped to the image",
                "ratio": f"the annotation's, else {_RATIO}",
                "recogniser": self.reader.about,
                "weights": self.reader.digest(self.weights),
            },
            extra="ocr",
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the recogniser's weights where they are absent and `offline` allows it."""
        self.reader.fetch(self.weights, offline)

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch of images or clips: row columns, each (B,) float64.

        Raises:
            NotApplicable: Sound; no words; words that belong to another size than the images that are compared.
            UsageError: An annotation that is not of the form `words_of` documents.
            WeightsAbsent: The recogniser's weights are not on this machine.
        """
        _, y = checked_pair(self.spec.name, sample)
        recogniser = self.reader.load(self.weights, str(y.device))
        judged = self._judged(sample, recogniser.alphabet)
        known: list[list[str | None]] = readings(self, sample)
        words = [
            [self._against(word, text) for word, text in zip(row, texts, strict=True)]
            for row, texts in zip(judged, known, strict=True)
        ]
        seen = _through_jpeg(y, sample.keys, self.jpeg) if self.jpeg else y
        return _finish(self.spec.name, self._edges(), self._suffix, sample, reread(recogniser, seen, words))

    def read(self, sample: Sample) -> list[list[str | None]]:
        """Read the annotated words on the references: a list a row, None for a word that is not to be read."""
        x, _ = checked_pair(self.spec.name, sample)
        recogniser = self.reader.load(self.weights, str(x.device))
        words = reread(recogniser, x, self._judged(sample, recogniser.alphabet))
        return [[word.score.read for word in row] for row in words]

    def details(self, sample: Sample) -> list[list[Record]]:
        """Return a record a word: text, reference (read there), read (on the reconstruction), ratio, bin, status."""
        return _records(self.spec.name, sample)

    def _judged(self, sample: Sample, alphabet: frozenset[str]) -> list[list[Judged]]:
        bins = self._edges()
        return [
            [_judge(word, bins, alphabet, sample, index) for word in _words(self.spec.name, sample, index)]
            for index in range(len(sample.keys))
        ]

    def _against(self, word: Judged, reference: str | None) -> Judged:
        score = replace(word.score, reference=reference)
        if self.select == "legible" and score.status == OK and reference != score.text:
            return Judged(replace(score, status=NOT_LEGIBLE))
        return replace(word, score=score)


@dataclass(frozen=True)
class TextEasyOcrSelf:
    """Text without annotations: EasyOCR finds and reads words on the reference, and what it reads there is the truth.

    **Pseudo ground truth**, so it says whether a reader sees the same text before and after, not whether the text is right;
    the reference scores 1 by construction. Words that are read with low confidence are listed and not scored. Works on any
    images and sizes; a clip is read on its first frame alone.

    Args:
        bins: As `AnnotatedText`.
        confidence: Smallest confidence of a word on the reference, in [0, 1].
        weights: Folder of `english_g2.pth` and `craft_mlt_25k.pth` where they are in no usual place.

    Reference: easyocr.Reader.detect (width_ths=0: words, not lines) and .recognize.
    """

    bins: str | float = "256"
    confidence: float = 0.5
    weights: str = ""

    undefined: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self._edges()
        if not 0 <= self.confidence <= 1:
            raise UsageError(f"text_easyocr_self: confidence must lie in [0, 1]; got {self.confidence!r}")

    def _edges(self) -> Bins:
        return parse_bins("text_easyocr_self", self.bins)

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the sha256 of both networks are two of them."""
        return MetricSpec(
            name="text_easyocr_self",
            modalities=("image", "video"),
            columns=score_columns(self._edges().names, "easyocr_self", on_reference=False),
            summary="Words as EasyOCR reads them on the reference (pseudo ground truth)",
            reference="easyocr.Reader.detect and .recognize",
            protocol={
                "bins": list(self._edges().edges),
                "truth": "reading of the reference",
                "detector": "craft, easyocr's settings, width_ths 0",
                "recogniser": EASYOCR.about,
                "confidence": float(self.confidence),
                "frames": "the first",
                "ratio": _RATIO,
                "weights": {
                    name: easyocr.digest(name, self.weights) for name in (easyocr.RECOGNISER, easyocr.DETECTOR)
                },
            },
            extra="ocr",
        )

    def read(self, sample: Sample) -> list[list[dict[str, object]]]:
        """Find and read the words of each reference: text, confidence, box and, for slanted words, quad."""
        x, _ = checked_pair(self.spec.name, sample)
        device = str(x.device)
        detector = easyocr.load_detector(easyocr.require(easyocr.DETECTOR, self.weights), device)
        recogniser = easyocr.load_recogniser(easyocr.require(easyocr.RECOGNISER, self.weights), device)
        images = [_frame(row, 0) for row in x]
        places = [detector.find(image) for image in images]
        found = [recogniser.read([image], [regions])[0] for image, regions in zip(images, places, strict=True)]
        return [
            [
                {"text": one.text, "confidence": one.confidence, "box": list(region.box), "quad": _listed(region)}
                for region, one in zip(regions, reads, strict=True)
            ]
            for regions, reads in zip(places, found, strict=True)
        ]

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch of images or clips: row columns, each (B,) float64.

        Raises:
            NotApplicable: Sound.
            WeightsAbsent: The weights are not on this machine.
        """
        _, y = checked_pair(self.spec.name, sample)
        bins, recogniser = self._edges(), EASYOCR.load(self.weights, str(y.device))
        known: list[list[Mapping[str, Any]]] = readings(self, sample)
        words = [[self._judge(word, bins, max(y.shape[-2:])) for word in row] for row in known]
        return _finish(self.spec.name, bins, "easyocr_self", sample, reread(recogniser, y, words))

    def details(self, sample: Sample) -> list[list[Record]]:
        """Return a record a word: text (read on the reference), read (on the reconstruction), ratio, bin, status."""
        return _records(self.spec.name, sample)

    def _judge(self, word: Mapping[str, Any], bins: Bins, long_side: int) -> Judged:
        left, top, right, bottom = (int(value) for value in word["box"])
        text, quad = str(word["text"]), word["quad"]
        ratio = max(right - left, bottom - top) / len(text) / long_side if text else None
        state, region = status(Word(text, (left, top, right, bottom), ratio), bins, frozenset(text), bottom, right)
        if state == OK and word["confidence"] < self.confidence:
            state = NOT_LEGIBLE
        score = Scored(text, state, ratio, bins.find(ratio) if ratio is not None else None, reference=text)
        if state != OK or region is None:
            return Judged(score)
        corners: Any = None if quad is None else tuple((float(x), float(y)) for x, y in quad)
        return Judged(score, Region(region.box, corners))


# ---------------------------------------------------------------------------------------------------------- shared


def _words(metric: str, sample: Sample, index: int) -> list[Word]:
    annotation = sample.annotations[index] if index < len(sample.annotations) else {}
    words = words_of(metric, annotation, *sample.reference.shape[-2:])
    if sample.reference.ndim == 4:
        return words
    if any(word.frame is None for word in words):
        raise NotApplicable(
            f"{metric}: {sample.keys[index]} is a clip, and its words do not say on which frame they are"
        )
    start, frames = _start(sample.keys[index]), sample.reference.shape[2]
    return [word for word in words if word.frame is not None and start <= word.frame < start + frames]


def _start(key: str) -> int:
    found = _START.search(key)
    return int(found[1]) if found else 0


def _judge(word: Word, bins: Bins, alphabet: frozenset[str], sample: Sample, index: int) -> Judged:
    state, region = status(word, bins, alphabet, *sample.reference.shape[-2:])
    within = bins.find(word.ratio) if word.ratio is not None else None
    frame = 0 if word.frame is None or sample.reference.ndim == 4 else word.frame - _start(sample.keys[index])
    return Judged(Scored(word.text, state, word.ratio, within, frame=word.frame), region, frame)


def reread(
    recogniser: Recogniser, x: Tensor, rows: Sequence[Sequence[Judged]], together: bool | None = None
) -> list[list[Judged]]:
    """Return the words with what is read on `x`.

    Args:
        recogniser: What reads.
        x: Images (B, 3, H, W) or clips (B, 3, T, H, W) in [0, 1].
        rows: The words of each row; those with a region are read.
        together: All rows at once. By default not on the CPU, where a row at a time keeps every string free of its batch.
    """
    together = x.device.type != "cpu" if together is None else together
    blocks = [list(range(len(rows)))] if together else [[row] for row in range(len(rows))]
    out = [list(row) for row in rows]
    for block in blocks:
        spots: dict[tuple[int, int], list[tuple[int, Region]]] = {}
        for row in block:
            for index, word in enumerate(rows[row]):
                if word.region is not None:
                    spots.setdefault((row, word.frame), []).append((index, word.region))
        images = [_frame(x[row], frame) for row, frame in spots]
        reads = recogniser.read(images, [[region for _, region in spot] for spot in spots.values()])
        for ((row, _), spot), found in zip(spots.items(), reads, strict=True):
            for (index, _), read in zip(spot, found, strict=True):
                out[row][index] = replace(out[row][index], score=replace(out[row][index].score, read=read.text))
    return out


def _finish(
    metric: str, bins: Bins, suffix: str, sample: Sample, rows: Sequence[Sequence[Judged]]
) -> dict[str, Tensor]:
    """Keep the words for `details` and add them up."""
    scores = [[word.score for word in row] for row in rows]
    sample.memo[metric] = scores
    return columns([tally(row, bins.names, suffix) for row in scores])


def _through_jpeg(x: Tensor, keys: Sequence[str], quality: int) -> Tensor:
    """Return images as Pillow's JPEG leaves those whose file is one."""
    import io

    from PIL import Image

    if x.ndim != 4:
        raise NotApplicable("jpeg is for images; TokBench's scripts save video with a video codec")
    rows = []
    for row, key in zip(x, keys, strict=True):
        if key.lower().endswith((".jpg", ".jpeg")):
            file = io.BytesIO()
            Image.fromarray(pixels(row)).save(file, "JPEG", quality=quality)
            decoded = torch.from_numpy(np.array(Image.open(file)))
            rows.append((decoded.permute(2, 0, 1).float() / 255).to(x.device))
        else:
            rows.append(row)
    return torch.stack(rows)


def _frame(row: Tensor, frame: int) -> Pixels:
    return pixels(row if row.ndim == 3 else row[:, frame])


def _listed(region: Region) -> list[list[float]] | None:
    return None if region.quad is None else [[x, y] for x, y in region.quad]


def _records(metric: str, sample: Sample) -> list[list[Record]]:
    rows = cast("Sequence[Sequence[Scored]]", sample.memo.get(metric, [()] * len(sample.keys)))
    return [
        [
            {
                "text": word.text,
                "reference": word.reference,
                "read": word.read,
                "ratio": word.ratio,
                "bin": word.bin,
                "status": word.status,
                **({} if word.frame is None else {"frame": word.frame}),
            }
            for word in row
        ]
        for row in rows
    ]
