"""pFID is rFID of the perturbed reconstructions, whatever the batches and shards; seeded weights, the same on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.adapters.nn.neighbours import TableNeighbours
from tokbench.data import Item
from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics import perturbation, pfid
from tokbench.metrics.frechet import Rfid
from tokbench.metrics.perturbation import GRID, perturbed, released
from tokbench.metrics.pfid import COLUMN, PerturbedFid, ReleasedPerturbedFid
from tokbench.reconstruct import Engine, reconstruct
from tokbench.spec import EvalProtocol, ImagePrepare, TokenizerSpec
from tokbench.types import Code, Neighbours, Sample, State, Stream, merge_states


class Grey:
    """The first grey of each patch of 4x4, from a table of 32."""

    spec = TokenizerSpec("grey", "image", "discrete", downsample=(4, 4), codebook_size=(32,))

    def encode(self, x: Tensor) -> Code:
        return Code((Stream("0", 32, (x[:, 0, ::4, ::4] * 31).round().long()),))

    def decode(self, code: Code) -> Tensor:
        grey = code.streams[0].indices[:, None] / 31
        return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()

    def neighbours(self, codebook: str) -> Neighbours:
        return TableNeighbours(torch.linspace(0, 1, 32)[:, None])

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        return x[:, 0, ::4, ::4, None]


class Deaf(Grey):
    """The same without neighbours."""

    neighbours = None  # type: ignore[assignment]


def batch(keys: str, tokenizer: object | None = None) -> Sample:
    def picture(key: str) -> np.ndarray:
        return np.random.Generator(np.random.PCG64(ord(key))).integers(0, 256, (3, 32, 32), dtype=np.uint8)

    items = [Item(key=key, group=key, signal=picture(key)) for key in keys]
    protocol = EvalProtocol("image", ImagePrepare("native", None))
    return reconstruct(tokenizer or Grey(), items, protocol, Engine()).samples[0]  # type: ignore[arg-type]


def gathered(metric: PerturbedFid | ReleasedPerturbedFid, *parts: list[str]) -> State:
    whole: State = {}
    for part in parts:
        state = metric.init()
        for keys in part:
            sample = batch(keys)
            state = metric.update_reference(metric.update(state, sample), sample)
        whole = metric.bound(merge_states(whole, state))
    return whole


@pytest.fixture
def two_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (GRID[3], GRID[6])
    monkeypatch.setattr(perturbation, "GRID", chosen)
    monkeypatch.setattr(pfid, "GRID", chosen)


@pytest.mark.slow
def test_a_cell_is_rfid_of_its_images_and_splits_do_not_matter(inception_weights: str, two_cells: None) -> None:
    metric, plain = PerturbedFid(weights=inception_weights), Rfid(weights=inception_weights)
    out = metric.compute(gathered(metric, ["abcd"]))
    sample = batch("abcd")
    for cell, image in perturbed(sample).items():
        changed = replace(sample, reconstruction=image, raw=image, memo={})
        state = plain.update_reference(plain.update({}, changed), changed)
        assert out[f"{COLUMN}/{cell.name}"] == plain.compute(state)["rfid"]
    cells = [value for name, value in out.items() if "/" in name and value is not None]
    assert len(cells) == 2
    assert out[COLUMN] == pytest.approx(sum(cells) / 2)
    assert metric.compute(gathered(metric, ["d", "b"], ["ca"])) == out


@pytest.mark.slow
def test_the_released_perturbation_has_its_fid_under_a_name_of_its_own(inception_weights: str) -> None:
    metric, plain = ReleasedPerturbedFid(delta=6, weights=inception_weights), Rfid(weights=inception_weights)
    out = metric.compute(gathered(metric, ["abcd"]))
    assert set(out) == {"pfid_released"}
    sample = batch("abcd")
    code, image = released(sample, 1.0, 6)
    assert not torch.equal(code.streams[0].indices, sample.code.streams[0].indices)
    changed = replace(sample, reconstruction=image, raw=image, memo={})
    state = plain.update_reference(plain.update({}, changed), changed)
    assert out["pfid_released"] == plain.compute(state)["rfid"]
    assert metric.compute(gathered(metric, ["d", "b"], ["ca"])) == out
    assert metric.spec.protocol["delta"] == 6
    kept = ReleasedPerturbedFid(alpha=0.0, weights=inception_weights)
    assert kept.compute(gathered(kept, ["abcd"]))["pfid_released"] == pytest.approx(
        plain.compute(plain.update_reference(plain.update({}, sample), sample))["rfid"]
    )
    with pytest.raises(UsageError, match="pfid_released"):
        ReleasedPerturbedFid(delta=0)


def test_what_is_missing_is_said_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    metric = PerturbedFid()
    assert metric.spec.protocol["weights"] == "absent"
    with pytest.raises(NotApplicable, match="near"):
        metric.update({}, batch("a", Deaf()))
    heard = Grey()
    sample = batch("a", heard)
    heard.decode = None  # type: ignore[assignment,method-assign]
    with pytest.raises(WeightsAbsent, match="inception"):
        metric.update({}, sample)
    assert metric.compute({})[COLUMN] is None
    assert set(metric.compute({})) == {COLUMN, *(f"{COLUMN}/{cell.name}" for cell in GRID)}
