"""FlowMo: words, velocities and the whole walk from a given noise against the official code on seeded weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keytable import expand
from seeded import seeded_image, seeded_tensor
from torch import Tensor

from tokbench.adapters import flowmo
from tokbench.adapters.nn.checkpoint import assemble, skeleton
from tokbench.adapters.nn.keynames import published_as, published_name
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "flowmo-lo"
META: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
FULL: dict[str, Any] = json.loads((FOLDER / "keys.json").read_text())
ARRAYS = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "golden.npz").items()}
CARDS = {card.name: card for card in read_catalog(ROOT / "adapters" / "flowmo.toml")}


def state() -> dict[str, Tensor]:
    return {key: seeded_tensor(key, *entry) for key, entry in expand(META["keys"]).items()}


def network(sampling: flowmo.Sampling | None = None) -> flowmo.FlowMo:
    make = partial(flowmo.network, META["architecture"], sampling)
    module: flowmo.FlowMo = assemble(make, state(), layouts=[published_as(flowmo.RULES)], drop=flowmo.UNUSED)
    return module


def picture() -> Tensor:
    return seeded_image(META["seed"], 2, 32, 32) * 2 - 1


def noise() -> Tensor:
    return seeded_tensor("noise", (2, 3, 32, 32)) * math.sqrt(3 * 32 * 32)


def indices() -> Tensor:
    return ARRAYS["indices"].long().transpose(1, 2)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert expected.std() > 1000 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_words_equal_the_official_code() -> None:
    net = network()
    close(net.features(picture()).flatten(2), ARRAYS["features"])
    assert indices().unique().numel() > 10
    assert torch.equal(net.encode(picture()), indices())


@torch.no_grad()
def test_velocities_equal_the_official_code() -> None:
    stride = META["stride"]
    plain = network(flowmo.Sampling(guidance=1.0))
    code = plain.code(indices())
    for row, time in enumerate(META["times"]):
        one = slice(row, row + 1)
        close(plain.velocity(noise()[one], time, code[one])[..., ::stride, ::stride], ARRAYS["velocity"][one])
        nothing = torch.zeros_like(code[one])
        without = plain.velocity(noise()[one], time, nothing)[..., ::stride, ::stride]
        close(without, ARRAYS["velocity_without"][one])
    assert (ARRAYS["velocity"] - ARRAYS["velocity_without"]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("shift", "name"), [(4.0, "sample"), (1.0, "sample_linear")])
def test_the_walk_equals_the_official_sampler(shift: float, name: str) -> None:
    net = network(flowmo.Sampling(steps=4, shift=shift))
    stride = META["stride"]
    close(net.flow(noise(), net.code(indices()))[..., ::stride, ::stride], ARRAYS[name])


def test_guidance_acts_within_its_interval_only() -> None:
    sampling = flowmo.Sampling()
    assert sampling.times()[0] == 1.0
    assert sampling.times()[-1] == 0.0
    assert len(sampling.times()) == 26
    guided = [time for time in sampling.times() if sampling.guided(time)]
    assert 0.1453 < min(guided) < max(guided) < 0.505
    assert len(guided) == 6
    assert not any(replace(sampling, guidance=1.0).guided(time) for time in sampling.times())


@pytest.mark.parametrize("name", sorted(CARDS))
def test_full_configuration_has_the_official_keys(name: str) -> None:
    published = {key: shape for key, (shape, _) in expand(FULL[name]["table"]).items()}
    assert len(published) == FULL[name]["tensors"]
    module = skeleton(partial(flowmo.network, CARDS[name].architecture))
    built = {published_name(key, flowmo.RULES): tuple(value.shape) for key, value in module.state_dict().items()}
    assert built.items() <= published.items()
    left = {key for key in published if any(fnmatchcase(key, pattern) for pattern in flowmo.UNUSED)}
    assert published.keys() - built.keys() == left
    assert all("_mod.lin" in key or "time_in" in key or "final_layer" in key for key in left)
    bits, groups = CARDS[name].architecture["bits"], CARDS[name].architecture["groups"]
    assert CARDS[name].spec.codebook_size == (2**bits,) * groups


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("flowmo") / "flowmo_lo.pth"
    averages = state()
    plain = {key: torch.full_like(value, 0.5) for key, value in averages.items()}
    torch.save({"model_state_dict": plain, "model_ema_state_dict": averages, "total_steps": 7}, path)
    card = at_point(CARDS["flowmo-lo"], {"steps": 2})
    card = replace(card, architecture=META["architecture"], spec=replace(card.spec, native_size=(32, 32)))
    return build_tokenizer(card, {"model": path})


def test_the_contract_holds_on_seeded_weights(tokenizer: Any) -> None:
    found = check(tokenizer, Engine(), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name: item.detail for item in found}["capabilities"] == "edit, neighbours, unquantized"


def test_the_averages_are_loaded_and_noise_decides_the_picture(tokenizer: Any) -> None:
    code = tokenizer.encode(picture())
    assert torch.equal(torch.stack([stream.indices for stream in code.streams], dim=1), indices())
    pictures = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        pictures.append(tokenizer.decode(code))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)
    signs = torch.stack([code.streams[1].indices >> bit & 1 for bit in range(9)], dim=-1).bool()
    assert torch.equal(tokenizer.unquantized(picture(), "1") > 0, signs)
