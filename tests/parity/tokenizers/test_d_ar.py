"""D-AR: words, conditions, velocities and the whole walk from a given noise against the official code on seeded weights."""

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

from tokbench.adapters import d_ar
from tokbench.adapters.nn.checkpoint import assemble, skeleton
from tokbench.adapters.nn.keynames import published_as, published_name
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "d-ar"
META: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
FULL: dict[str, Any] = json.loads((FOLDER / "keys.json").read_text())
ARRAYS = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "golden.npz").items()}
CARDS = {card.name: card for card in read_catalog(ROOT / "adapters" / "d-ar.toml")}


def state() -> dict[str, Tensor]:
    return {key: seeded_tensor(key, *entry) for key, entry in expand(META["keys"]).items()}


def network(steps: int = 4, kept: int | None = None) -> d_ar.Dar:
    make = partial(d_ar.network, META["architecture"], d_ar.Sampling(steps), kept)
    module: d_ar.Dar = assemble(make, state(), layouts=[published_as(d_ar.RULES)], drop=d_ar.UNUSED)
    return module


def picture() -> Tensor:
    return seeded_image(META["seed"], 2, 64, 64) * 2 - 1


def noise() -> Tensor:
    return seeded_tensor("noise", (2, 3, 64, 64)) * math.sqrt(3 * 64 * 64)


def indices() -> Tensor:
    return ARRAYS["indices"].long()[:, None]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert expected.std() > 1000 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_words_equal_the_official_code() -> None:
    net = network()
    close(net.features(picture()), ARRAYS["pre_quant"])
    assert indices().unique().numel() > 20
    assert torch.equal(net.encode(picture()), indices())
    assert torch.equal(network(kept=16).encode(picture()), indices()[:, :, :16])


@torch.no_grad()
def test_conditions_and_velocities_equal_the_official_code() -> None:
    net, stride = network(), META["stride"]
    conditions = net.conditions(indices())
    close(conditions, ARRAYS["conditions"])
    for row, time in enumerate(META["times"]):
        one = slice(row, row + 1)
        found = net.velocity(noise()[one], time, conditions[one, 8:16])
        close(found[..., ::stride, ::stride], ARRAYS["velocity"][one])


@torch.no_grad()
@pytest.mark.parametrize(
    ("steps", "kept", "name"), [(4, 32, "sample"), (4, 16, "sample_clip2"), (6, 32, "sample_6_steps")]
)
def test_the_walk_equals_the_official_sampler(steps: int, kept: int, name: str) -> None:
    net, stride = network(steps), META["stride"]
    found = net.flow(noise(), net.conditions(indices()[:, :, :kept]))
    close(found[..., ::stride, ::stride], ARRAYS[name], 2e-4)


def test_every_step_follows_its_own_tokens() -> None:
    full = skeleton(partial(d_ar.network, CARDS["d-ar"].architecture))
    plan = full.plan(256)
    assert [group.start for _, _, group in plan] == list(range(0, 256, 32))
    assert plan[0][0] == 0.0
    assert plan[-1][1] == 1.0
    assert [now for now, _, _ in plan[1:]] == [after for _, after, _ in plan[:-1]]
    assert plan[4][0] == pytest.approx(1 / 3)
    assert full.plan(95)[-1][1:] == (1.0, slice(32, 64))
    with pytest.raises(ValueError, match="32 tokens; 31"):
        full.plan(31)


def test_full_configuration_has_the_official_keys() -> None:
    published = {key: shape for key, (shape, _) in expand(FULL["d-ar"]["table"]).items()}
    assert len(published) == FULL["d-ar"]["tensors"]
    module = skeleton(partial(d_ar.network, CARDS["d-ar"].architecture))
    built = {published_name(key, d_ar.RULES): tuple(value.shape) for key, value in module.state_dict().items()}
    assert built.items() <= published.items()
    left = published.keys() - built.keys()
    assert left == {key for key in published if any(fnmatchcase(key, pattern) for pattern in d_ar.UNUSED)}
    assert len(left) == 7


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("d-ar") / "D-AR-tokenizer_v1.pt"
    averages = state()
    torch.save({"model": {key: torch.full_like(value, 0.5) for key, value in averages.items()}, "ema": averages}, path)
    return path


def tokenizer(path: Path, tokens: int = 256) -> Any:
    card = at_point(CARDS["d-ar"], {"steps": 4, "tokens": tokens})
    spec = replace(card.spec, native_size=(64, 64), codebook_size=(512,))
    return build_tokenizer(replace(card, architecture=META["architecture"], spec=spec), {"model": path})


def test_the_contract_holds_on_seeded_weights(path: Path) -> None:
    found = check(tokenizer(path), Engine(), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name: item.detail for item in found}["capabilities"] == "edit, neighbours, unquantized"


def test_the_averages_are_loaded_and_noise_decides_the_picture(path: Path) -> None:
    loaded = tokenizer(path)
    code = loaded.encode(picture())
    assert torch.equal(code.streams[0].indices, indices()[:, 0])
    pictures = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        pictures.append(loaded.decode(code))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)
