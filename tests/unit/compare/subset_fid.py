"""A metric of the set that is cheap, keeps its features row by row and can be computed of subsets: FID of colour means."""

from __future__ import annotations

from typing import Any, ClassVar

from tokbench.metrics._exact import add_rows, bounded
from tokbench.metrics.frechet import distance, subset_distances
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State


class SubsetFid:
    undefined: ClassVar[dict[str, str]] = {}

    def __init__(self, *, grid: int = 4) -> None:
        self.grid = grid
        column = Column("subset_fid", "", False, where="corpus")
        self.spec = MetricSpec("subset_fid", ("image",), (column,), protocol={"grid": grid})

    def _add(self, state: State, sample: Sample, side: str) -> State:
        cells = getattr(sample, side).unflatten(-1, (self.grid, -1)).unflatten(2, (self.grid, -1))
        return bounded(add_rows(state, side, sample.keys, cells.double().mean((3, 5)).flatten(1)), side)

    def init(self) -> State:
        return {}

    def update(self, state: State, sample: Sample) -> State:
        return self._add(state, sample, "reconstruction")

    def update_reference(self, state: State, sample: Sample) -> State:
        return self._add(state, sample, "reference")

    def on_subsets(self, reference: Any, reconstruction: Any, subsets: Any) -> Any:
        return subset_distances(reference, reconstruction, subsets)

    def compute(self, state: State) -> dict[str, float | None]:
        return {"subset_fid": distance(state)}


class WordCount:
    """Words read right of the words there are, by how bright a picture and its reconstruction are: a ratio of sums."""

    undefined: ClassVar[dict[str, str]] = {}
    spec = MetricSpec(
        "words",
        ("image",),
        (
            Column("right", level=False),
            Column("there", level=False),
            Column("accuracy", "", True, where="corpus", ratio=("right", "there")),
            Column("both", "", True, where="corpus", mean_of=("accuracy", "accuracy")),
        ),
    )

    def __call__(self, sample: Sample) -> dict[str, Any]:
        there = (sample.reference.double().flatten(1).mean(1) * 20).round() + 1
        gap = (sample.reference - sample.reconstruction).double().abs().flatten(1).mean(1)
        return {"right": (there - gap * 100).clamp(min=0).floor(), "there": there}
