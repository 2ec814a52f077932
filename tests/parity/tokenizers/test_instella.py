"""Instella's binary autoencoder: bits and pictures at two sizes against the official code on seeded weights."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keytable import expand
from safetensors.torch import save_file
from seeded import seeded_image, seeded_tensor
from torch import Tensor

from tokbench.adapters import instella
from tokbench.adapters.nn.checkpoint import assemble, skeleton
from tokbench.adapters.nn.keynames import published_as, published_name
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "instella-bae"
META: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
FULL: dict[str, Any] = json.loads((FOLDER / "keys.json").read_text())
ARRAYS = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "golden.npz").items()}
CARDS = {card.name: card for card in read_catalog(ROOT / "adapters" / "instella.toml")}


def state() -> dict[str, Tensor]:
    return {key: seeded_tensor(key, *entry) for key, entry in expand(META["keys"]).items()}


def network(size: int) -> instella.Instella:
    make = partial(instella.network, META["architecture"], size)
    module: instella.Instella = assemble(make, state(), layouts=[published_as(instella.RULES)])
    return module


def picture(size: int) -> Tensor:
    return seeded_image(META["seed"], 2, size, size) * 2 - 1


def words(size: int) -> Tensor:
    """Pack the official bits: four words of 16 a token, the first bit the lowest."""
    bits = torch.unflatten(ARRAYS[f"bits_{size}"].long(), -1, (4, 16))
    return (bits * 2 ** torch.arange(16)).sum(-1).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("size", [256, 128])
def test_bits_and_pictures_equal_the_official_code(size: int) -> None:
    net, stride = network(size), META["stride"]
    features = net.features(picture(size)).flatten(2)
    torch.testing.assert_close(features, ARRAYS[f"features_{size}"], atol=1e-4, rtol=0)
    assert torch.equal(net.encode(picture(size)), words(size))
    found = net.decode(words(size))
    assert found.shape == (2, 3, size, size)
    torch.testing.assert_close(found[..., ::stride, ::stride], ARRAYS[f"recon_{size}"], atol=1e-4, rtol=0)


def test_places_are_stretched_over_one_length() -> None:
    with torch.no_grad():
        plain = assemble(
            partial(instella.network, {**META["architecture"], "reach": 128}, 128),
            state(),
            layouts=[published_as(instella.RULES)],
        )
        found = plain.features(picture(128)).flatten(2)
    assert (found - ARRAYS["features_128"]).abs().max() > 0.01


def test_full_configuration_has_the_official_keys() -> None:
    published = {key: shape for key, (shape, _) in expand(FULL["instella-bae"]["table"]).items()}
    assert len(published) == FULL["instella-bae"]["tensors"]
    module = skeleton(partial(instella.network, CARDS["instella-bae"].architecture, 1024))
    built = {published_name(key, instella.RULES): tuple(value.shape) for key, value in module.state_dict().items()}
    assert built == published


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("instella") / "model.safetensors"
    save_file(state(), path)
    card = at_point(CARDS["instella-bae"], {"size": 512})
    assert card.spec.native_size == (512, 512)
    return build_tokenizer(replace(card, architecture=META["architecture"]), {"model": path})


def test_the_contract_holds_on_seeded_weights(tokenizer: Any) -> None:
    found = check(tokenizer, Engine(), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name: item.detail for item in found}["capabilities"] == "edit, neighbours, unquantized"


@torch.no_grad()
def test_what_the_quantizer_saw_has_the_signs_of_its_words(tokenizer: Any) -> None:
    x = picture(512)[:1]
    stream = tokenizer.encode(x).streams[2]
    signs = torch.stack([stream.indices >> bit & 1 for bit in range(16)], dim=-1).bool()
    assert torch.equal(tokenizer.unquantized(x, "2") > 0, signs)
