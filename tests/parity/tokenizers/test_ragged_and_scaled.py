"""CODA's and TokenFlow's scales, KARL's halted tokens and ELM's drawn bits against what their official code computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keytable import Table, expand
from safetensors.torch import save_file
from seeded import seeded_image, seeded_tensor
from torch import Tensor

from tokbench.adapters import coda, tokenflow
from tokbench.adapters.nn import checkpoint
from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Stream

ROOT = Path(__file__).parents[3]


class Recorded:
    """One golden: meta data, arrays, key tables and the card it proves, made small."""

    def __init__(self, name: str) -> None:
        folder = ROOT / "tests" / "parity" / "tokenizers" / name
        self.meta: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / "golden.npz").items()}
        tables = json.loads((folder / "keys.json").read_text())
        self.tiny: Table = expand(tables["tiny"])
        self.full: Table = expand(tables["full"])
        cards = {card.name: card for card in read_catalog(ROOT / "adapters" / f"{self.meta['catalog']}.toml")}
        self.published: Card = at_point(cards[self.meta["card"]], {})
        spec = {key: tuple(value) for key, value in self.meta["spec"].items()}
        self.card = replace(
            self.published,
            architecture=self.meta["architecture"],
            options=self.meta.get("options", self.published.options),
            spec=replace(self.published.spec, **spec),
        )

    def build(self, folder: Path, roles: Mapping[str, str], **architecture: Any) -> Any:
        """Build the small tokenizer from one file a role, each with the seeded tensors that have its prefix."""
        paths = {}
        for role, prefix in roles.items():
            part = {k.removeprefix(prefix): seeded_tensor(k, *v) for k, v in self.tiny.items() if k.startswith(prefix)}
            part |= {key: torch.zeros(3) for key in self.meta.get("extra", ()) if role == "model" and not prefix}
            paths[role] = folder / f"{role}.safetensors"
            save_file(part, paths[role])
        card = replace(self.card, architecture={**self.card.architecture, **architecture})
        return build_tokenizer(card, paths)


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    assert expected.std() > 10 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


CODA = {"model": "vae.", "quantizer": "quantizer."}


@pytest.mark.parametrize("name", ["coda-mar", "coda-flux"])
def test_coda_equals_official_code(name: str, tmp_path: Path) -> None:
    golden = Recorded(name)
    tokenizer = golden.build(tmp_path, CODA)
    image = seeded_image(golden.meta["seed"], *golden.meta["image"]) * 2 - 1
    close(tokenizer._latents(image), golden.arrays["latents"], golden.meta["atol"])
    code = tokenizer.encode(image)
    sides = golden.meta["architecture"]["sides"]
    expected = [golden.arrays[f"indices_{k}"].long() for k in range(len(sides))]
    assert torch.cat([row.flatten() for row in expected]).unique().numel() > 20
    for stream, side, indices in zip(code.streams, sides, expected, strict=True):
        assert stream.indices.shape == (2, side, side)
        assert torch.equal(stream.indices, indices)
    recorded = replace(code, streams=tuple(Stream("0", 256, indices) for indices in expected))
    stride = golden.meta["stride"]
    close(tokenizer.decode(recorded)[..., ::stride, ::stride], golden.arrays["reconstruction"], golden.meta["atol"])


@pytest.mark.parametrize("name", ["coda-mar", "coda-flux"])
def test_coda_obeys_the_contract(name: str, tmp_path: Path) -> None:
    found = check(Recorded(name).build(tmp_path, CODA), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []


@pytest.mark.parametrize("name", ["coda-mar", "coda-flux"])
def test_coda_has_the_published_keys(name: str) -> None:
    golden = Recorded(name)
    published = {key: torch.empty(shape, device="meta") for key, (shape, _) in golden.full.items()}
    updated = [key for key in published if key.endswith(".lora_layer.up.weight")]
    assert len(updated) > 20
    built = skeleton(lambda: coda.network(golden.published)).state_dict()
    assert {k: v.shape for k, v in coda.folded(published).items()} == {k: v.shape for k, v in built.items()}


def test_karl_hides_halted_tokens_as_the_official_code_does(tmp_path: Path) -> None:
    golden = Recorded("karl-small")
    tokenizer = golden.build(tmp_path, {"model": ""})
    image = seeded_image("karl-small", *golden.meta["input"])
    code = tokenizer.encode(image)
    kept = golden.arrays["kept"]
    assert 0 < int((~kept).sum()) < kept.numel()
    assert torch.equal(code.side["kept"], kept)
    assert code.streams[0].lengths is not None
    assert torch.equal(code.streams[0].lengths, kept.sum(1))
    assert code.side_bits == kept.shape[1]
    close(tokenizer.decode(code)[..., ::2, ::2], golden.arrays["reconstruction_halted"], 1e-4)


def test_karl_reads_no_index_beyond_the_kept_ones(tmp_path: Path) -> None:
    golden = Recorded("karl-small")
    tokenizer = golden.build(tmp_path, {"model": ""})
    code = tokenizer.encode(seeded_image("karl-small", *golden.meta["input"]))
    stream = code.streams[0]
    assert stream.lengths is not None
    beyond = torch.arange(stream.indices.shape[1]) >= stream.lengths[:, None]
    other = replace(code, streams=(replace(stream, indices=torch.where(beyond, 7, stream.indices)),))
    torch.testing.assert_close(tokenizer.decode(other), tokenizer.decode(code), atol=1e-5, rtol=0)


def test_elm_draws_the_bits_the_official_code_draws(tmp_path: Path) -> None:
    golden = Recorded("elm-bae-16bit-deter")
    tokenizer = golden.build(tmp_path, {"model": ""}, sampled=True)
    torch.manual_seed(0)
    code = tokenizer.encode(seeded_image("elm-bae-16bit-deter", *golden.meta["input"]))
    assert torch.equal(code.streams[0].indices, golden.arrays["sampled"][:, 0].long())
    assert not torch.equal(code.streams[0].indices, golden.arrays["indices"][:, 0].long())


def test_tokenflow_on_siglip_equals_official_code(tmp_path: Path) -> None:
    golden = Recorded("tokenflow-siglip")
    tokenizer = golden.build(tmp_path, {"model": ""})
    image = seeded_image(golden.meta["seed"], *golden.meta["image"]) * 2 - 1
    code = tokenizer.encode(image)
    sides = golden.meta["architecture"]["sides"]
    assert [stream.indices.shape[1:] for stream in code.streams] == [(side, side) for side in sides]
    assert golden.arrays["indices"].unique().numel() > 100
    assert torch.equal(torch.cat([s.indices.flatten(1) for s in code.streams], 1), golden.arrays["indices"].long())
    close(tokenizer._quantizer.decode(code.streams)[..., ::3, ::3], golden.arrays["latents"], 1e-4)
    close(tokenizer.decode(code)[..., ::8, ::8], golden.arrays["reconstruction"], 1e-4)


def test_tokenflow_on_siglip_has_the_published_keys() -> None:
    golden = Recorded("tokenflow-siglip")
    seen: dict[str, Any] = {}

    def keep(module: Any, state: Mapping[str, Tensor], **_: Any) -> None:
        seen.update(built=module.state_dict(), read=state)

    with pytest.MonkeyPatch.context() as patch:
        published = {key: torch.empty(shape, device="meta") for key, (shape, _) in golden.full.items()}
        patch.setattr(tokenflow, "training_state", lambda _: published)
        patch.setattr(checkpoint, "load_into", keep)
        build_tokenizer(golden.published, {"model": Path("none")})
    assert len(published) > 700
    assert {k: v.shape for k, v in seen["built"].items()} == {k: v.shape for k, v in seen["read"].items()}


@pytest.mark.slow
def test_tokenflow_on_siglip_obeys_the_contract(tmp_path: Path) -> None:
    found = check(Recorded("tokenflow-siglip").build(tmp_path, {"model": ""}), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []


def test_drawn_bits_obey_the_contract(tmp_path: Path) -> None:
    golden = Recorded("elm-bae-16bit-deter")
    golden.card = replace(golden.card, spec=replace(golden.card.spec, deterministic=False))
    tokenizer = golden.build(tmp_path, {"model": ""}, sampled=True)
    found = check(tokenizer, Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
