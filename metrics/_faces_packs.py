"""Where face models are: the packs of insightface, or any ONNX file a path names; with digests and licences."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokbench.errors import UsageError, WeightsAbsent
from tokbench.spec import WeightFile
from tokbench.weights import WeightsRefused, file_digest, missing, resolve

from ._backbones import digest_of

NONE = "none"

RECOGNISER = "recogniser"
DETECTOR = "detector"

_VARIABLES: Mapping[str, str] = {RECOGNISER: "TOKBENCH_FACE_ONNX", DETECTOR: "TOKBENCH_FACE_DETECTOR_ONNX"}
_SCRFD_SHA256 = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_RESEARCH = "insightface model zoo: weights for non-commercial research only"


@dataclass(frozen=True)
class Pack:
    """A pair of face networks as insightface publishes them, in one zip file.

    Attributes:
        name: As `FaceAnalysis(name=...)` spells it, and the folder in `~/.insightface/models`.
        files: Role -> ONNX file.
        archive: The zip file that holds them.
        licence: Of the weights, as their publisher states it; the library itself is MIT.
    """

    name: str
    files: Mapping[str, WeightFile]
    archive: WeightFile
    licence: str = _RESEARCH


def _pack(name: str, recogniser: WeightFile, detector: str, archive: str, size: int) -> Pack:
    url = f"https://github.com/deepinsight/insightface/releases/download/v0.7/{name}.zip"
    return Pack(
        name,
        {RECOGNISER: recogniser, DETECTOR: WeightFile(DETECTOR, detector, sha256=_SCRFD_SHA256, size=16_923_827)},
        WeightFile("archive", f"{name}.zip", url=url, sha256=archive, size=size),
    )


PACKS: Mapping[str, Pack] = {
    "antelopev2": _pack(
        "antelopev2",
        WeightFile(
            RECOGNISER,
            "glintr100.onnx",
            sha256="4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
            size=260_665_334,
        ),
        "scrfd_10g_bnkps.onnx",
        "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
        360_662_982,
    ),
    "buffalo_l": _pack(
        "buffalo_l",
        WeightFile(
            RECOGNISER,
            "w600k_r50.onnx",
            sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
            size=174_383_860,
        ),
        "det_10g.onnx",
        "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
        288_621_354,
    ),
}
"""Name -> pack. `antelopev2` (ResNet-100, Glint360K) is TokBench's; `buffalo_l` is insightface's default."""

ANY = "onnx"
"""The model that is no pack: an ArcFace-type ONNX file the user names."""


def licence(model: str) -> str:
    """Return what is known of the licence of a model's weights."""
    return PACKS[model].licence if model in PACKS else "weights: as their owner states"


def find(model: str, role: str, explicit: str = "") -> Path | None:
    """Return the local file of a role, or None; uses no network.

    A pack's files are looked for in `$TOKBENCH_WEIGHTS/<pack>/` and `$TOKBENCH_WEIGHTS/`, in `~/.insightface/models/<pack>/`
    (and the folder of the same name inside it, where antelopev2's own zip file lands), and in an earlier download.

    Args:
        model: A pack, or `onnx`.
        role: `recogniser` or `detector`.
        explicit: A file, or a folder that holds the pack's file; nothing else is tried then.

    Raises:
        UsageError: `explicit` or an environment variable names nothing.
        WeightsRefused: The pack's file is there and is another one. A detector named by `explicit` may be any.
    """
    if explicit:
        return _named(model, role, Path(explicit).expanduser(), explicit)
    if model == ANY:
        variable = _VARIABLES[role]
        named = os.environ.get(variable, "")
        return _named(model, role, Path(named).expanduser(), f"{variable}={named}") if named else None
    pack, file = PACKS[model], PACKS[model].files[role]
    if not missing([file], owner=pack.name):
        return resolve([file], owner=pack.name, offline=True)[role]
    home = Path("~/.insightface/models").expanduser() / pack.name
    for path in (home / file.file, home / pack.name / file.file):
        if path.is_file():
            return _checked(path, file)
    if not missing([pack.archive], owner=pack.name):
        archive = resolve([pack.archive], owner=pack.name, offline=True)["archive"]
        return _checked(_unpacked(archive, file), file)
    return None


def require(model: str, role: str, explicit: str = "") -> Path:
    """Return the local file of a role.

    Raises:
        WeightsAbsent: It is nowhere; `fix` says what to do.
    """
    path = find(model, role, explicit)
    if path is not None:
        return path
    if model == ANY:
        option = "weights" if role == RECOGNISER else "detector"
        raise WeightsAbsent(
            f"no {role} is named for model=onnx",
            f"set {_VARIABLES[role]}=/path/to/model.onnx, or name it with the metric's option: {option}=/path/to/model.onnx",
        )
    pack = PACKS[model]
    name = pack.files[role].file
    raise WeightsAbsent(
        f"{pack.name} needs {name} ({pack.licence})",
        f"download {pack.archive.url} and unpack it to ~/.insightface/models/{pack.name}, "
        f"or put {name} at $TOKBENCH_WEIGHTS/{pack.name}/{name}",
    )


def digest(model: str, role: str, explicit: str = "") -> str:
    """Return the sha256 of the file that will be used, or `absent`."""
    return digest_of(lambda: find(model, role, explicit))


def fetch(model: str, role: str, explicit: str, offline: bool) -> None:
    """Download the pack where the file is absent and may be had; without it the metric's cells say what is missing."""
    if offline or explicit or model == ANY:
        return
    with suppress(WeightsRefused):
        if find(model, role) is None:
            _download(PACKS[model].name)


@lru_cache
def _download(pack: str) -> None:
    # Once a process: where there is no network, every bin set would wait for it again.
    with suppress(WeightsAbsent):
        resolve([PACKS[pack].archive], owner=pack, offline=False)


def _named(model: str, role: str, path: Path, shown: str) -> Path:
    if path.is_dir() and model in PACKS:
        path /= PACKS[model].files[role].file
    if not path.is_file():
        raise UsageError(f"face: {shown}: no such file; name an ONNX file")
    # Columns carry the recogniser's name, so it must be that one; a detector is named by its digest alone.
    return _checked(path, PACKS[model].files[role]) if model in PACKS and role == RECOGNISER else path


def _checked(path: Path, file: WeightFile) -> Path:
    actual = file_digest(path)
    if actual != file.sha256:
        raise WeightsRefused(
            f"{path} has sha256 {actual[:16]}…, the published {file.file} has {str(file.sha256)[:16]}…",
            f"remove {path} and fetch it again; to use other weights on purpose, name them with model=onnx&weights=",
        )
    return path


def _unpacked(archive: Path, file: WeightFile) -> Path:
    target = archive.parent / file.file
    if not target.is_file():
        with zipfile.ZipFile(archive) as holder:
            member = next((name for name in holder.namelist() if Path(name).name == file.file), None)
            if member is None:
                raise WeightsRefused(f"{archive} holds no {file.file}", f"remove {archive} and fetch it again")
            part = target.with_suffix(f".{os.getpid()}.part")
            try:
                with holder.open(member) as source, part.open("wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
    return target
