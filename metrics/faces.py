"""F-Sim: whether faces keep their identity, as TokBench (arXiv 2505.18142) scores it, with verification and detection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, Undefined, UsageError
from tokbench.spec import MetricSpec, digest
from tokbench.types import Sample, readings, take_row
from tokbench.weights import file_digest

from . import _faces_packs as packs
from ._faces_bins import parse_bins
from ._faces_nets import Detector, Embedding, Found, Pixels, Recogniser, load_detector, load_recogniser
from ._faces_read import SURVIVES, Reference, box_found, crop_of, examine, pixels, through_jpeg
from ._faces_scene import Face, Scene, annotated, overlap, ratio_of
from ._faces_table import NO_FACE, OK, Record, Scored, Table
from ._rows import checked_pair


class Faces:
    """F-Sim: cosine of the embeddings of a face in the original and, at the same key points, in the reconstruction.

    The five key points come with the dataset; they align a 112x112 crop on both sides (insightface's `norm_crop`: bilinear,
    8 bits, blue-green-red), and no detector touches the reconstruction, which is the published way (`eval_face.py` of
    TokBench). A face counts in the bin its ratio lies in; `f_sim` is the plain mean of the bins' means, `f_sim_all` the mean
    over all faces. Every number stands on the faces it names: an interval over files and n come with it.

    Nothing is left out silently. A face whose box lies off the image, or whose key points define no transform, has a record
    with that status and counts in `face_unscored`; a frame without a face has one too, and adds nothing.

    With a detector there is also `face_survival`: of the faces it finds in the original, the share it finds again in the
    reconstruction at an overlap of 0.5; and pictures without stored key points are scored on what it finds in the original
    (if it finds key points, as SCRFD does).

    Args:
        model: `antelopev2` (TokBench's preset), `buffalo_l`, or `onnx`: any ArcFace-type network, named by `weights` or
            `$TOKBENCH_FACE_ONNX`. The packs' weights are for non-commercial research only. Embeddings of two networks are
            not on one scale, so each has its own columns.
        weights: The recogniser's file, where it is in no usual place.
        bins: `2025-06` or `2025-05`, the two published sets, or free edges: `0.1,0.2,0.3,1`.
        size: S of the protocol, which chooses the published edges: 256, 512 or 1024; 480 for video.
        detector: Empty for none, `pack` for the pack's own (with `model=onnx`: `$TOKBENCH_FACE_DETECTOR_ONNX`), or a file.
        threshold: Cosine from which two crops count as the same person in `face_verified`. 0.4 is a round number in the
            range that is in use; it is not calibrated to a rate of false matches.
        jpeg: Quality of a JPEG between reconstruction and network; 0 for none. The released scripts of TokBench save
            reconstructions of JPEG sets with quality 75; `jpeg=75` is that, for comparisons with its board. Images only.

    Raises:
        UsageError: An option that is none of these.
    """

    def __init__(
        self,
        *,
        model: str = "antelopev2",
        weights: str = "",
        bins: str = "2025-06",
        size: int = 256,
        detector: str = "",
        threshold: float = 0.4,
        jpeg: int = 0,
    ) -> None:
        if model not in {*packs.PACKS, packs.ANY}:
            raise UsageError(f"face: unknown model {model!r}; one of {', '.join([*packs.PACKS, packs.ANY])}")
        if not -1 <= threshold <= 1:
            raise UsageError(f"face: threshold={threshold} is no cosine; give a number in [-1, 1]")
        if jpeg and not 1 <= jpeg <= 95:
            raise UsageError(f"face: jpeg={jpeg}; give a quality from 1 to 95, or 0 for no JPEG")
        self._model, self._weights, self._detector = model, weights, detector
        self._jpeg = jpeg
        edges = parse_bins(str(bins), size)
        suffix = ("" if model == "antelopev2" else f"_{model}") + edges.suffix + (f"_jpeg{jpeg}" if jpeg else "")
        self._bins = edges
        self._table = Table(model, edges, threshold, bool(detector), suffix)

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the networks' sha256 are among them."""
        recogniser = packs.digest(self._model, packs.RECOGNISER, self._weights)
        detector = packs.digest(self._model, packs.DETECTOR, self._detector_file) if self._detector else packs.NONE
        return MetricSpec(
            name=f"face{self._table.suffix}",
            modalities=self._bins.modalities,
            columns=self._table.columns,
            summary=f"face identity, {self._model}, {self._bins.name} ({packs.licence(self._model)})",
            reference="TokBench eval_face.py; insightface ArcFaceONNX.get",
            protocol={
                "model": self._model,
                "recogniser": recogniser,
                "detector": detector,
                "align": "insightface norm_crop 112, key points of the reference",
                "bins": self._bins.name,
                "edges": {modality: list(edges) for modality, edges in self._bins.edges.items()},
                "threshold": self._table.threshold,
                "overlap": SURVIVES,
                "jpeg": self._jpeg,
            },
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the pack where it is absent and `offline` allows it."""
        packs.fetch(self._model, packs.RECOGNISER, self._weights, offline)
        if self._detector:
            packs.fetch(self._model, packs.DETECTOR, self._detector_file, offline)

    def read(self, sample: Sample) -> list[object]:
        """Find, align and embed the faces of the references: one JSON value a row; see `tokbench.types.Reading`.

        Raises:
            Undefined: A row has no stored key points and there is no detector that finds them.
            WeightsAbsent: A network is not on this machine.
        """
        memo = f"faces-read:{self._recogniser_key}:{self._detector_key}"
        if memo not in sample.memo:
            sample.memo[memo] = self._read(sample)
        return cast("list[object]", sample.memo[memo])

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: sums and counts a row, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video, or no edges for the modality; or the picture was cropped.
            Undefined, WeightsAbsent: As `read`.
        """
        rows = [self._table.counts(sample.spec.modality, faces) for faces in self._scored(sample)]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def details(self, sample: Sample) -> list[list[Record]]:
        """Return a record a face, and one a frame without a face."""
        modality = sample.spec.modality
        return [
            [self._table.record(modality, index, face) for index, face in enumerate(faces)]
            for faces in self._scored(sample)
        ]

    # ------------------------------------------------------------------------------------------------- both sides

    def _scored(self, sample: Sample) -> list[list[Scored]]:
        # Under a name without the bins, so that two bin sets in one run cost as much as one.
        memo = f"faces:{self._recogniser_key}:{self._detector_key}:{self._jpeg}"
        if memo not in sample.memo:
            sample.memo[memo] = self._compare(sample)
        return cast("list[list[Scored]]", sample.memo[memo])

    def _compare(self, sample: Sample) -> list[list[Scored]]:
        _, reconstruction = checked_pair("face", sample)
        if sample.spec.modality not in self._bins.edges:
            raise NotApplicable(f"{self._bins.name} has no edges for {sample.spec.modality} of this size")
        if self._jpeg and reconstruction.ndim == 5:
            raise NotApplicable(
                "jpeg= is the released path of image sets; videos went through H.264, which is not copied"
            )
        known = [Reference.from_json(self._fresh(sample, row, read)) for row, read in enumerate(readings(self, sample))]
        network, detector = self._recogniser(sample), self._finder(sample)
        crops: list[list[Pixels]] = []
        again: list[Mapping[int, Sequence[Found]] | None] = []
        for row, reference in enumerate(known):
            images = {frame: pixels(reconstruction, row, frame) for frame in reference.scene.frames}
            if self._jpeg:
                images = {frame: through_jpeg(image, self._jpeg) for frame, image in images.items()}
            crops.append([crop_of(network, images[face.frame], face) for face in reference.scorable])
            again.append({frame: detector.find(image) for frame, image in images.items()} if detector else None)
        return [_match(*parts) for parts in zip(known, network.embed(crops), again, strict=True)]

    def _fresh(self, sample: Sample, row: int, value: Any) -> Mapping[str, Any]:
        """Return a reading, made anew where it is of other annotations or networks than today's."""
        if not isinstance(value, Mapping) or value.get("of") != self._origin(sample, row):
            value = self.read(take_row(sample, row))[0]
            sample.readings.setdefault(self.spec.name, {})[sample.keys[row]] = value
        return cast("Mapping[str, Any]", value)

    # ----------------------------------------------------------------------------------------------- the reference

    def _read(self, sample: Sample) -> list[object]:
        reference, _ = checked_pair("face", sample)
        network, detector = self._recogniser(sample), self._finder(sample)
        crops: list[list[Pixels]] = []
        parts: list[tuple[Scene, list[str], list[Sequence[Found]]]] = []
        for row in range(reference.shape[0]):
            scene, found = self._scene(sample, reference, row, detector)
            images = {frame: pixels(reference, row, frame) for frame in scene.frames}
            looked = [examine(network, images[face.frame], face) for face in scene.faces]
            crops.append([crop for _, crop in looked if crop is not None])
            parts.append((scene, [state for state, _ in looked], [found.get(face.frame, ()) for face in scene.faces]))
        out: list[object] = []
        for row, ((scene, status, hits), vectors) in enumerate(zip(parts, network.embed(crops), strict=True)):
            boxes = tuple(box_found(face, near) for face, near in zip(scene.faces, hits, strict=True))
            out.append(Reference(scene, tuple(status), boxes, vectors).to_json(self._origin(sample, row)))
        return out

    def _scene(
        self, sample: Sample, reference: Tensor, row: int, detector: Detector | None
    ) -> tuple[Scene, Mapping[int, Sequence[Found]]]:
        scene = annotated(sample, row)
        if detector is None:
            if scene is None:
                raise Undefined(f"no key points are stored for {sample.keys[row]}; detector=pack would find them")
            return scene, {}
        if scene is None and not detector.points:
            raise Undefined(f"no key points are stored for {sample.keys[row]}, and the detector finds boxes only")
        frames = tuple(range(reference.shape[2])) if reference.ndim == 5 else (0,)
        frames = frames if scene is None else scene.frames
        found = {frame: detector.find(pixels(reference, row, frame)) for frame in frames}
        if scene is None:
            height, width = reference.shape[-2:]
            faces = [
                Face(frame, hit.points, hit.box, ratio_of(hit.box, (height, width)))
                for frame, hits in found.items()
                for hit in hits
            ]
            scene = Scene(frames, tuple(faces))
        return scene, found

    def _origin(self, sample: Sample, row: int) -> str:
        said = sample.annotations[row] if sample.annotations else {}
        about = repr([said.get(key) for key in ("size", "faces", "frames")])  # JSON would refuse a NaN
        return digest([about, list(sample.reference.shape[1:]), self._recogniser_key, self._detector_key])

    # ------------------------------------------------------------------------------------------------ the networks

    @property
    def _detector_file(self) -> str:
        return "" if self._detector == "pack" else self._detector

    @cached_property
    def _recogniser_key(self) -> str:
        return file_digest(packs.require(self._model, packs.RECOGNISER, self._weights))

    @cached_property
    def _detector_key(self) -> str:
        if not self._detector:
            return packs.NONE
        return file_digest(packs.require(self._model, packs.DETECTOR, self._detector_file))

    def _recogniser(self, sample: Sample) -> Recogniser:
        path = packs.require(self._model, packs.RECOGNISER, self._weights)
        return load_recogniser(path, self._recogniser_key, str(sample.reference.device))

    def _finder(self, sample: Sample) -> Detector | None:
        if not self._detector:
            return None
        path = packs.require(self._model, packs.DETECTOR, self._detector_file)
        return load_detector(path, self._detector_key, str(sample.reference.device))


def cosine(a: Embedding, b: Embedding) -> float:
    """Return the cosine of two embeddings, in float64; 0 where one of them is zero."""
    x, y = a.astype("f8"), b.astype("f8")
    length = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / length if length else 0.0


def _match(reference: Reference, after: Embedding, again: Mapping[int, Sequence[Found]] | None) -> list[Scored]:
    """Bring both sides of a row together: the faces in the order of the reading, then frames without a face."""
    pairs = iter(zip(reference.embeddings, after, strict=True))
    out: list[Scored] = []
    for face, status, box in zip(reference.scene.faces, reference.status, reference.found, strict=True):
        similarity = cosine(*next(pairs)) if status == OK else None
        seen = survived = None
        if again is not None:
            seen = box is not None
            survived = box is not None and any(overlap(box, hit.box) >= SURVIVES for hit in again[face.frame])
        out.append(Scored(face.frame, status, face.box, face.ratio, similarity, seen, survived))
    taken = {face.frame for face in reference.scene.faces}
    return out + [Scored(frame, NO_FACE) for frame in reference.scene.frames if frame not in taken]
