"""Metrics that score single rows, read references and keep parts, for the tests of the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tokbench.errors import MissingExtra, Undefined
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray, Sample, readings


def spec(name: str, *columns: Column) -> MetricSpec:
    return MetricSpec(name=name, modalities=("image", "video", "audio"), columns=columns)


class RowError:
    """Mean absolute error of a row, by NumPy; a dark row has no value; `row_process` tells where it ran."""

    spec = spec("row_error", Column("row_error", "", False), Column("row_process", level=False))

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> Mapping[str, float]:
        if reference.mean() < 0.2:
            raise Undefined(f"the row is dark: {reference.mean():.3f}")
        return {
            "row_error": float(np.abs(reference.astype(np.float64) - reconstruction).mean()),
            "row_process": float(os.getpid()),
        }


class RowKiller:
    """Ends its process on a dark row, as a crash in native code does."""

    spec = spec("row_killer", Column("row_killer"))

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> Mapping[str, float]:
        if reference.mean() < 0.2:
            os._exit(11)
        return {"row_killer": 1.0}


class RowExtra:
    """Needs a library that nobody has."""

    spec = spec("row_extra", Column("row_extra"))

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> Mapping[str, float]:
        raise MissingExtra("row_extra needs nothing-at-all", "pip install nothing-at-all")


class Bright:
    """Counts bright pixels that stay bright; what it reads from a reference is how many are bright."""

    reads: ClassVar[list[str]] = []
    spec = spec(
        "bright",
        Column("bright_kept", level=False),
        Column("bright_all", level=False),
        Column("dark_kept", level=False),
        Column("dark_all", level=False),
        Column("bright_share", "", True, where="corpus", ratio=("bright_kept", "bright_all")),
        Column("dark_share", "", True, where="corpus", ratio=("dark_kept", "dark_all")),
        Column("share", "", True, where="corpus", mean_of=("bright_share", "dark_share")),
    )

    def read(self, sample: Sample) -> Sequence[object]:
        self.reads.extend(sample.keys)
        return [{"bright": int((row > 0.5).sum())} for row in sample.reference]

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        counts = [record["bright"] for record in readings(self, sample)]
        before, after = sample.reference > 0.5, sample.reconstruction > 0.5
        kept = (before & after).flatten(1).sum(1)
        size = before[0].numel()
        return {
            "bright_kept": kept.double(),
            "bright_all": torch.tensor(counts, dtype=torch.float64),
            "dark_kept": (~before & ~after).flatten(1).sum(1).double(),
            "dark_all": torch.tensor([size - count for count in counts], dtype=torch.float64),
        }

    def details(self, sample: Sample) -> Sequence[Sequence[Mapping[str, str | int | float | bool | None]]]:
        return [
            [{"part": "bright", "pixels": record["bright"], "status": "ok"}] if record["bright"] else []
            for record in readings(self, sample)
        ]
