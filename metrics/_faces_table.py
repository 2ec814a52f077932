"""What is counted of faces: one face's score, and the columns, row counts and records made of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokbench.spec import Column

from ._faces_bins import Bins
from ._faces_scene import Box

OK = "ok"
OFF = "box off the image"
DEGENERATE = "degenerate key points"
NO_FACE = "no face in frame"

Record = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Scored:
    """One face on both sides, or a frame without one.

    Attributes:
        similarity: Cosine of its embeddings, where its status is `ok`.
        found: Whether the detector finds it in the reference; None without a detector.
        found_again: Whether it then finds it in the reconstruction.
    """

    frame: int
    status: str
    box: Box | None = None
    ratio: float | None = None
    similarity: float | None = None
    found: bool | None = None
    found_again: bool | None = None


@dataclass(frozen=True)
class Table:
    """The columns of one variant of the metric, and how faces fill them.

    Attributes:
        about: The network, for descriptions.
        suffix: What every column ends with.
    """

    about: str
    bins: Bins
    threshold: float
    detects: bool
    suffix: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the numbers of the set, then the sums and counts of rows that they are made of."""
        end, labels = self.suffix, self.bins.labels
        headline = Column(
            f"f_sim{end}",
            "",
            True,
            f"F-Sim: mean of the bins {', '.join(labels)}; cosine of face embeddings, {self.about}, {self.bins.name}",
            atol=1e-4,
            where="corpus",
            mean_of=tuple(f"f_sim_{label}{end}" for label in labels),
        )
        shares = [self._ratio(f"f_sim_{label}", f"F-Sim of faces {self._words(label)}") for label in labels]
        shares.append(self._ratio("f_sim_all", "F-Sim over all faces, in a bin or not"))
        about = f"share of scored faces at a cosine of {self.threshold:g} or more: the same person"
        shares.append(self._ratio("face_verified", about, ("faces_verified", "f_sim_all_faces")))
        about = "share of faces without a score: off the image, or key points that define no alignment"
        shares.append(self._ratio("face_unscored", about, ("faces_unscored", "faces"), None))
        counts = [
            self._count("faces", "faces the dataset or the detector names"),
            self._count("faces_unscored", "of these, without a score"),
            self._count("faces_verified", f"faces at a cosine of {self.threshold:g} or more"),
        ]
        for label in (*labels, "all"):
            counts.append(self._count(f"f_sim_{label}_sum", f"sum of cosines, {label}", ""))
            counts.append(self._count(f"f_sim_{label}_faces", f"faces scored, {label}"))
        if self.detects:
            about = "of the faces the detector finds in the reference, the share it finds again at an overlap of 0.5"
            shares.append(self._ratio("face_survival", about, ("faces_found_again", "faces_found")))
            counts.append(self._count("faces_found", "faces the detector finds in the reference"))
            counts.append(self._count("faces_found_again", "of these, found again in the reconstruction"))
        return (headline, *shares, *counts)

    def counts(self, modality: str, faces: Sequence[Scored]) -> dict[str, float]:
        """Return one row's sums and counts."""
        real = [face for face in faces if face.status != NO_FACE]
        scored = [(face.ratio, face.similarity) for face in real if face.similarity is not None]
        out = {
            "faces": len(real),
            "faces_unscored": len(real) - len(scored),
            "faces_verified": sum(cosine >= self.threshold for _, cosine in scored),
        }
        sums: dict[str, float] = {}
        for label in (*self.bins.labels, "all"):
            mine = [cosine for ratio, cosine in scored if label in {"all", self.bins.place(modality, ratio)}]
            sums[f"f_sim_{label}_sum"] = math.fsum(mine)
            sums[f"f_sim_{label}_faces"] = len(mine)
        if self.detects:
            out["faces_found"] = sum(bool(face.found) for face in real)
            out["faces_found_again"] = sum(bool(face.found_again) for face in real)
        return {name + self.suffix: float(value) for name, value in (out | sums).items()}

    def record(self, modality: str, index: int, face: Scored) -> Record:
        """Return what a result keeps of a face."""
        left, top, right, bottom = face.box or (None, None, None, None)
        return {
            "face": index,
            "frame": face.frame,
            "status": face.status,
            "left": left,
            "top": top,
            "right": right,
            "bottom": bottom,
            "ratio": face.ratio,
            "bin": self.bins.place(modality, face.ratio),
            "similarity": face.similarity,
            "verified": None if face.similarity is None else face.similarity >= self.threshold,
            "found": face.found,
            "found_again": face.found_again,
        }

    def _count(self, name: str, about: str, unit: str = "faces") -> Column:
        return Column(name + self.suffix, unit, None, about, decimals=0 if unit else 4, level=False)

    def _ratio(self, name: str, about: str, of: tuple[str, str] | None = None, better: bool | None = True) -> Column:
        above, below = of or (f"{name}_sum", f"{name}_faces")
        ends = (above + self.suffix, below + self.suffix)
        return Column(name + self.suffix, "", better, about, atol=1e-4, where="corpus", ratio=ends)

    def _words(self, label: str) -> str:
        at = self.bins.labels.index(label)
        parts = [f"[{e[at]:g}, {e[at + 1]:g}) ({modality})" for modality, e in self.bins.edges.items()]
        return f"{label}: ratio in {' or '.join(parts)}"
