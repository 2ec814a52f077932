"""Tokenizers on LlamaGen's convolutions against the authors' own code: same seeded weights, same indices, same picture."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import seeded_image, seeded_tensor

from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.adapters.nn.llamagen import training_state
from tokbench.catalog import at_point, read_catalog
from tokbench.spec import Card
from tokbench.types import Code, Stream
from tokbench.weights import WeightsRefused

ROOT = Path(__file__).parents[3]
GOLDENS = Path(__file__).parent
CASES = (
    "gigatok-s-s",
    "retok-s-b",
    "fqgan-dual-ds16",
    "fqgan-triple-ds16",
    "fqgan-dual-ds8",
    "fqgan-triple-ds8",
    "tokenflow",
    "vfmtok",
)
FAMILIES = ("gigatok", "fqgan", "tokenflow", "vfmtok")
KEYS = json.loads((GOLDENS / "llamagen-kin-keys.json").read_text())


def cards() -> dict[str, Card]:
    return {card.name: card for name in FAMILIES for card in read_catalog(ROOT / "adapters" / f"{name}.toml")}


def module_of(card: Card) -> Any:
    return importlib.import_module(card.target.split(":")[0])


def published_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    module = module_of(card)
    state = skeleton(lambda: module.network(card)).state_dict()
    assert all(value.is_meta for value in state.values())
    return {module.published_key(key, card): tuple(value.shape) for key, value in state.items()}


class Case:
    """One golden: the recorded arrays and the adapter of the small configuration on seeded weights."""

    def __init__(self, name: str, tmp: Path) -> None:
        self.meta: dict[str, Any] = json.loads((GOLDENS / name / "golden.json").read_text())
        self.arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / name / "golden.npz").items()}
        card = at_point(cards()[self.meta["tokenizer"]], {})
        sizes = (self.meta["codebook_size"],) * len(card.spec.codebook_size)
        self.card = replace(
            card,
            architecture={**card.architecture, **self.meta["architecture"]},
            spec=replace(card.spec, codebook_size=sizes),
        )
        state = {key: seeded_tensor(key, shape) for key, shape in published_shapes(self.card).items()}
        unused = self.meta["published_keys"]["unused"]
        state |= {key: torch.zeros(()) for key in unused}
        self.path = tmp / f"{name}.pt"
        torch.save({"ema": state, "model": {}}, self.path)
        torch.save({}, tmp / "none.pt")
        files = {file.role: tmp / "none.pt" for file in card.weights} | {"model": self.path}
        self.adapter = module_of(card).tokenizer(self.card, files)
        self.image = seeded_image(*self.meta["seeded_image"]) * 2 - 1


@pytest.mark.parametrize("name", CASES)
def test_indices_and_picture_equal_official_code(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    streams = case.adapter.encode(case.image).streams
    keys = sorted(key for key in case.arrays if key.startswith("indices"))
    flat = torch.cat([case.arrays[key].long().reshape(len(case.image), -1) for key in keys], dim=1)
    expected = flat.split([stream.indices[0].numel() for stream in streams], dim=1)
    recorded = []
    for stream, row in zip(streams, expected, strict=True):
        assert torch.equal(stream.indices.flatten(1), row)
        recorded.append(Stream(stream.codebook, stream.codebook_size, row.view(stream.indices.shape)))
    assert flat.unique().numel() >= 8
    assert {stream.codebook_size for stream in streams} == {case.meta["codebook_size"]}
    if "pre_quant" in case.arrays:
        with torch.no_grad():
            latents = case.adapter._net.latents(case.image)
        official = case.arrays["pre_quant"]
        official = official.mT if name == "vfmtok" else official.reshape(latents.shape)
        torch.testing.assert_close(latents, official, atol=1e-4, rtol=0)
    stride = int(case.meta["reconstruction_stride"])
    decoded = case.adapter.decode(Code(tuple(recorded)))
    assert decoded.shape == case.image.shape
    assert case.arrays["recon_from_code"].std() > 0.05
    torch.testing.assert_close(decoded[..., ::stride, ::stride], case.arrays["recon_from_code"], atol=1e-4, rtol=0)


def test_retok_decodes_a_prefix_as_the_official_code(tmp_path: Path) -> None:
    case = Case("retok-s-b", tmp_path)
    first = case.arrays["indices"].long().view(1, -1)[:, :64]
    decoded = case.adapter.decode(Code((Stream("0", case.meta["codebook_size"], first),)))
    torch.testing.assert_close(decoded[..., ::8, ::8], case.arrays["recon_64"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(KEYS))
def test_published_configuration_has_the_official_keys_and_shapes(name: str) -> None:
    shapes: dict[str, Any] = {**published_shapes(at_point(cards()[name], {})), **KEYS[name]["unused"]}
    rows = sorted((key, list(shape)) for key, shape in shapes.items())
    digest = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    assert (len(rows), digest) == (KEYS[name]["count"], KEYS[name]["sha256"])


def test_neighbours_and_latents_belong_to_a_table(tmp_path: Path) -> None:
    case = Case("fqgan-dual-ds16", tmp_path)
    latents = case.adapter.unquantized(case.image, "sem")
    stream = case.adapter.encode(case.image).streams[1]
    flat, indices = latents.flatten(0, -2), stream.indices.flatten()
    near = case.adapter.neighbours("sem").choose_near(flat, 1, torch.zeros(len(flat), dtype=torch.float64))
    assert torch.equal(near, indices)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"optimizer": {"a": torch.zeros(1)}}, path)
    with pytest.raises(WeightsRefused, match="none of 'ema', 'model' and 'state_dict'"):
        training_state(path)


@pytest.mark.parametrize("name", CASES)
def test_contract_holds_on_seeded_weights(name: str, tmp_path: Path) -> None:
    from tokbench.contract import check
    from tokbench.reconstruct import Engine

    case = Case(name, tmp_path)
    case.adapter.spec = replace(case.card.spec, native_size=tuple(case.image.shape[-2:]))
    assert [c for c in check(case.adapter, Engine(), trained=False) if c.verdict in {"fail", "warn"}] == []
