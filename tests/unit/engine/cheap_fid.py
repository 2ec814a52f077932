"""A metric of the set with a reference part, cheap enough for tests: FID of colour means. Counts what it was shown."""

from __future__ import annotations

from typing import ClassVar

from tokbench.errors import WeightsAbsent
from tokbench.metrics._exact import add_rows, bounded
from tokbench.metrics.frechet import distance
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State


class CheapFid:
    seen: ClassVar[dict[str, int]] = {"reference": 0, "reconstruction": 0}
    undefined: ClassVar[dict[str, str]] = {}

    def __init__(self, *, grid: int = 2) -> None:
        self.grid = grid
        column = Column("cheap_fid", "", False, where="corpus")
        self.spec = MetricSpec("cheap_fid", ("image",), (column,), protocol={"grid": grid})

    def _add(self, state: State, sample: Sample, side: str) -> State:
        self.seen[side] += len(sample.keys)
        x = getattr(sample, side)
        cells = x.unflatten(-1, (self.grid, -1)).unflatten(2, (self.grid, -1))
        return bounded(add_rows(state, side, sample.keys, cells.double().mean((3, 5)).flatten(1)), side)

    def init(self) -> State:
        return {}

    def update(self, state: State, sample: Sample) -> State:
        return self._add(state, sample, "reconstruction")

    def update_reference(self, state: State, sample: Sample) -> State:
        return self._add(state, sample, "reference")

    def bound(self, state: State) -> State:
        return bounded(bounded(state, "reference"), "reconstruction")

    def compute(self, state: State) -> dict[str, float | None]:
        return {"cheap_fid": distance(state)}


class Weightless:
    """A metric of rows whose weights are nowhere. Counts how often it was asked."""

    asked: ClassVar[list[int]] = []
    undefined: ClassVar[dict[str, str]] = {}
    spec = MetricSpec("weightless", ("image",), (Column("weightless"),))

    def __call__(self, sample: Sample) -> dict[str, object]:
        self.asked.append(len(sample.keys))
        raise WeightsAbsent("weightless needs w.pth", "put it at /weights/w.pth")


class WeightlessSet(CheapFid):
    """A metric of the set whose weights are nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = MetricSpec("weightless_set", ("image",), (Column("weightless_set", where="corpus"),))

    def _add(self, state: State, sample: Sample, side: str) -> State:
        raise WeightsAbsent("weightless_set needs s.pth", "put it at /weights/s.pth")
