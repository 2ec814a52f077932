"""RepTok: token, condition, velocities and the whole walk from a given noise against the official code on seeded weights."""

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

from tokbench.adapters import reptok
from tokbench.adapters.nn.checkpoint import assemble, library, skeleton
from tokbench.adapters.nn.keynames import published_as, published_name
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.types import Code

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "reptok"
META: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
FULL: dict[str, Any] = json.loads((FOLDER / "keys.json").read_text())
ARRAYS = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "golden.npz").items()}
CARDS = {card.name: card for card in read_catalog(ROOT / "adapters" / "reptok.toml")}


def state() -> dict[str, Tensor]:
    return {key: seeded_tensor(key, *entry) for key, entry in expand(META["keys"]).items()}


@pytest.fixture(scope="module")
def net() -> Any:
    make = partial(reptok.network, META["architecture"])
    return assemble(make, state(), layouts=[reptok.tokenizer_part, published_as(reptok.RULES)], drop=reptok.UNUSED)


def picture() -> Tensor:
    return seeded_image(META["seed"], 2, 64, 64) * 2 - 1


def noise() -> Tensor:
    return seeded_tensor("noise", (2, 4, 8, 8)) * math.sqrt(4 * 8 * 8)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert expected.std() > 1000 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_tokens_equal_the_official_code(net: Any) -> None:
    close(net.encode(picture()), ARRAYS["token"])
    close(net.encode(seeded_image("reptok-large", 1, 128, 128) * 2 - 1), ARRAYS["token_large"])
    assert (ARRAYS["token"][0] - ARRAYS["token"][1]).abs().max() > 0.01


@torch.no_grad()
def test_velocities_equal_the_official_code(net: Any) -> None:
    condition = net.condition(ARRAYS["token"])
    close(condition, ARRAYS["condition"])
    close(net.velocity(noise(), torch.tensor(META["times"]), condition), ARRAYS["velocity"])


@torch.no_grad()
def test_the_walk_equals_the_official_sampler(net: Any) -> None:
    close(net.flow(noise(), ARRAYS["token"], META["steps"]), ARRAYS["latents"], 2e-4)


def test_full_configuration_has_the_official_keys() -> None:
    published = {key: shape for key, (shape, _) in expand(FULL["reptok"]["table"]).items()}
    assert len(published) == FULL["reptok"]["tensors"]
    module = skeleton(partial(reptok.network, CARDS["reptok"].architecture))
    built = {published_name(key, reptok.RULES): tuple(value.shape) for key, value in module.state_dict().items()}
    (kind,) = library("diffusers", ["AutoencoderKL"], "test", "diffusers")
    vae = skeleton(lambda: kind(**CARDS["reptok"].architecture["vae"]))
    built |= {reptok.VAE + key: tuple(value.shape) for key, value in vae.state_dict().items()}
    assert built.items() <= published.items()
    left = published.keys() - built.keys()
    assert left == {key for key in published if any(fnmatchcase(key, pattern) for pattern in reptok.UNUSED)}
    assert all("dino" in key or key.endswith("mask_token") for key in left)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("reptok") / "reptok-xl-600k-ImageNet.ckpt"
    generator = {"model.x": torch.zeros(1), "ema_model.x": torch.zeros(1), "metric_tracker.x": torch.zeros(1)}
    torch.save({"state_dict": generator | state(), "epoch": 3}, path)
    card = at_point(CARDS["reptok"], {"steps": META["steps"]})
    spec = replace(card.spec, native_size=(64, 64), latent_channels=64)
    return build_tokenizer(replace(card, architecture=META["architecture"], spec=spec), {"model": path})


def test_the_contract_holds_on_seeded_weights(tokenizer: Any) -> None:
    found = check(tokenizer, Engine(), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []


def test_pictures_equal_the_official_code(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *_: noise())
    found = tokenizer.decode(Code(latents=ARRAYS["token"][..., None]))
    stride = META["stride"]
    close(found[..., ::stride, ::stride], ARRAYS["picture"], 2e-4)


def test_noise_decides_the_picture(tokenizer: Any) -> None:
    code, pictures = tokenizer.encode(picture()), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        pictures.append(tokenizer.decode(code))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)
