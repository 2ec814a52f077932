"""Face networks in ONNX: ArcFace-type recognisers through insightface's own pre-processing, and two kinds of detector."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tokbench.errors import MissingExtra
from tokbench.weights import WeightsRefused

from ._faces_scene import Box, Points, overlap

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) blue, green, red, as OpenCV and insightface have them."""

Embedding = npt.NDArray[np.float32]

_BLOCK = 8
_DEVICE_BLOCK = 64


@dataclass(frozen=True)
class Found:
    """A face a detector found; `points` where it finds key points too."""

    box: Box
    score: float
    points: Points | None


class Detector(Protocol):
    """Finds faces in one picture; `points` tells whether it finds key points."""

    @property
    def points(self) -> bool: ...

    def find(self, image: Pixels) -> list[Found]: ...


class Recogniser:
    """An ArcFace-type network: aligned 112x112 crops to embeddings.

    Mean, scale and channel order are insightface's (`ArcFaceONNX`), so an embedding is what
    `insightface.model_zoo.get_model(path).get(image, face)` gives.

    On the CPU each picture's crops go in blocks of their own, so that a picture's numbers cannot depend on the rest of the
    batch; blocks run in as many threads as torch uses, with subnormal numbers flushed to zero (some exported networks hold
    thousands of them, which makes them several times slower and changes nothing). On a GPU blocks span the batch. A network
    whose batch is fixed takes crops one by one.
    """

    def __init__(self, path: Path, device: str) -> None:
        arcface = _insightface("model_zoo.arcface_onnx").ArcFaceONNX
        session = _session(path, device)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        square = len(shape) == 4 and shape[2] == shape[3] and isinstance(shape[2], int)
        if not square or len(outputs) != 1 or (shape[2] % 112 and shape[2] % 128):
            raise WeightsRefused(
                f"{path.name} is no ArcFace-type network: it takes {shape or f'{len(inputs)} inputs'} and returns "
                f"{len(outputs)} outputs; one input (N, 3, 112, 112) and one output (N, D) are needed",
                "name another file with weights=",
            )
        self._model: Any = arcface(model_file=str(path), session=session)
        self.side: int = shape[2]
        self.batched = not isinstance(shape[0], int) or shape[0] < 1
        self._device = device
        self._workers = ThreadPoolExecutor(
            max(1, torch.get_num_threads()), "tokbench-faces", initializer=torch.set_flush_denormal, initargs=(True,)
        )

    def align(self, image: Pixels, points: Points) -> Pixels | None:
        """Return the aligned crop (side, side, 3), or None where the five points define no similarity transform."""
        if np.ptp(points, axis=0).max() < 1:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-image's about `estimate`, which insightface still calls
            crop, matrix = _insightface("utils.face_align").norm_crop2(image, points, self.side)
        return crop if np.isfinite(matrix).all() else None

    def embed(self, crops: Sequence[Sequence[Pixels]]) -> list[Embedding]:
        """Return the raw embeddings of each picture's crops: (n, D) float32 a picture."""
        flat = [(row, crop) for row, group in enumerate(crops) for crop in group]
        if self._device.startswith("cuda"):
            step = _DEVICE_BLOCK if self.batched else 1
            blocks = [flat[i : i + step] for i in range(0, len(flat), step)]
        else:
            step = _BLOCK if self.batched else 1
            blocks = [
                [(row, crop) for crop in group[i : i + step]]
                for row, group in enumerate(crops)
                for i in range(0, len(group), step)
            ]
        found: list[list[Embedding]] = [[] for _ in crops]
        answers = self._workers.map(lambda block: self._model.get_feat([crop for _, crop in block]), blocks)
        for block, answer in zip(blocks, answers, strict=True):
            for (row, _), embedding in zip(block, answer, strict=True):
                found[row].append(np.asarray(embedding, np.float32).reshape(-1))
        return [np.stack(rows) if rows else np.zeros((0, 0), np.float32) for rows in found]


class _Scrfd:
    """SCRFD, the detector of insightface's packs, at 640x640 and a score of 0.5, insightface's defaults; five key points."""

    def __init__(self, path: Path, session: Any) -> None:
        scrfd = _insightface("model_zoo.scrfd").SCRFD
        self._model: Any = scrfd(model_file=str(path), session=session)
        self._model.prepare(0, input_size=(640, 640), det_thresh=0.5)
        self.points = bool(self._model.use_kps)

    def find(self, image: Pixels) -> list[Found]:
        boxes, points = self._model.detect(image)
        return [
            Found(
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                float(box[4]),
                None if points is None else np.asarray(points[i], np.float64),
            )
            for i, box in enumerate(boxes)
        ]


class _UltraFace:
    """The ultra-light single-shot detector (`scores`, `boxes`; 320x240): boxes only, score 0.65, overlap 0.4."""

    points = False
    score, most = 0.65, 0.4

    def __init__(self, session: Any) -> None:
        self._session = session
        entry = session.get_inputs()[0]
        self._input, (_, _, self._height, self._width) = entry.name, entry.shape

    def find(self, image: Pixels) -> list[Found]:
        import cv2

        small = cv2.resize(image, (self._width, self._height))[:, :, ::-1]
        planes = ((small.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        scores, boxes = self._session.run(["scores", "boxes"], {self._input: np.ascontiguousarray(planes)})
        height, width = image.shape[:2]
        scaled = boxes[0] * np.array([width, height, width, height])
        found: list[Found] = []
        for index in np.argsort(-scores[0, :, 1], kind="stable"):
            score = float(scores[0, index, 1])
            if score < self.score:
                break
            left, top, right, bottom = (float(v) for v in scaled[index])
            box = (left, top, right, bottom)
            if all(overlap(box, other.box) < self.most for other in found):
                found.append(Found(box, score, None))
        return found


@lru_cache(maxsize=2)
def load_recogniser(path: Path, _sha256: str, device: str) -> Recogniser:
    """Load a recogniser; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file is no ONNX network, or not of that type.
    """
    return Recogniser(path, device)


@lru_cache(maxsize=2)
def load_detector(path: Path, _sha256: str, device: str) -> Detector:
    """Load a detector: SCRFD, or an ultra-light one with the outputs `scores` and `boxes`.

    Raises:
        WeightsRefused: The file is neither.
    """
    session = _session(path, device)
    outputs = [output.name for output in session.get_outputs()]
    if len(outputs) in {6, 9, 10, 15}:
        return _Scrfd(path, session)
    if sorted(outputs) == ["boxes", "scores"] and all(isinstance(side, int) for side in session.get_inputs()[0].shape):
        return _UltraFace(session)
    raise WeightsRefused(
        f"{path.name} is no face detector known here: its outputs are {', '.join(outputs[:6])}",
        "name an SCRFD network (6, 9, 10 or 15 outputs), or one with the outputs scores and boxes",
    )


def _session(path: Path, device: str) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")  # it has no type information
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # old graphs warn of every initializer
    options.intra_op_num_threads = 1
    cuda = device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime's own exception types are not public
        first = next(iter(str(error).strip().splitlines()), "")
        raise WeightsRefused(
            f"{path.name} cannot be read as an ONNX network: {first[:200]}", "name another file"
        ) from error


def _insightface(module: str) -> Any:
    try:
        return importlib.import_module(f"insightface.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"metric face needs {error.name}", "pip install 'insightface>=2.1,<3'") from error
