"""Tokenizers that decode by diffusion: encoder, denoiser and one step of the sampler against the official code, seeded weights.

A whole decoding is random noise and hundreds of steps; what is compared is every function it is made of.
"""

from __future__ import annotations

import json
import math
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

from tokbench.adapters import semanticist
from tokbench.adapters.nn.checkpoint import assemble, library, skeleton
from tokbench.adapters.nn.dit import AncestralSampler
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "semanticist"
META = json.loads((FOLDER / "golden.json").read_text())
KEYS = json.loads((FOLDER / "keys.json").read_text())
ARRAYS = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "golden.npz").items()}
CARDS = {card.name: card for card in read_catalog(ROOT / "adapters" / "semanticist.toml")}


def state() -> dict[str, Tensor]:
    return {key: seeded_tensor(key, *entry) for key, entry in expand(KEYS["tiny"]).items()}


@pytest.fixture(scope="module")
def net() -> Any:
    return assemble(partial(semanticist.network, META["architecture"]), state())


def noisy() -> Tensor:
    return seeded_tensor("x_t", (2, 16, 8, 8)) * math.sqrt(16 * 8 * 8)


def picture() -> Tensor:
    return seeded_image("semanticist", 2, 128, 128)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert expected.std() > 10 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_slots_equal_the_official_code(net: Any) -> None:
    close(net.encode(picture()), ARRAYS["latents"])


@torch.no_grad()
@pytest.mark.parametrize(("kept", "name"), [(24, "denoiser_out"), (6, "denoiser_out_quarter_slots")])
def test_denoiser_equals_the_official_code(net: Any, kept: int, name: str) -> None:
    slots = torch.cat([ARRAYS["latents"][:, :kept], net.dit.null_cond.expand(2, -1, -1)[:, kept:]], dim=1)
    close(net.dit(noisy(), ARRAYS["t"], slots), ARRAYS[name])


@torch.no_grad()
def test_a_step_of_the_sampler_equals_the_official_code(net: Any) -> None:
    sampler = AncestralSampler(250)
    slots = torch.cat([ARRAYS["latents"][:, :6], net.dit.null_cond.expand(2, -1, -1)[:, 6:]], dim=1)
    time = torch.full((2,), sampler.times[100])
    found = sampler.moments(100, noisy(), net.dit(noisy(), time, slots))
    close(found.start, ARRAYS["step100_pred_xstart"], 2e-4)
    close(found.mean, ARRAYS["step100_mean"])
    close(found.log_variance, ARRAYS["step100_log_variance"], 1e-5)


def test_the_sampler_recovers_what_a_perfect_model_knows() -> None:
    target = torch.linspace(-1, 1, 2 * 4 * 3 * 3).view(2, 4, 3, 3)
    sampler = AncestralSampler(50)
    kept = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))

    def model(x: Tensor, time: Tensor) -> Tensor:
        share = float(kept[int(time[0])])
        noise = (x - math.sqrt(share) * target) / math.sqrt(1 - share)
        return torch.cat([noise, torch.zeros_like(noise)], dim=1)

    torch.manual_seed(0)
    torch.testing.assert_close(sampler.sample(model, torch.randn(2, 4, 3, 3)), target, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_full_configuration_has_the_published_keys(name: str) -> None:
    built = {
        key: tuple(value.shape)
        for key, value in skeleton(partial(semanticist.network, CARDS[name].architecture)).state_dict().items()
    }
    published = {key: shape for key, (shape, _) in expand(KEYS["full"]).items()}
    assert len(published) == KEYS["count"]
    if name == "semanticist-l":
        assert built == published
    else:
        assert set(published) < set(built)
        assert built["dit.pos_embed"] == (1, 64, 1152)
        assert "dit.blocks.27.attn.qkv.weight" in built


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("semanticist")
    vae = {"block_out_channels": [32] * 5, "norm_num_groups": 8, "layers_per_block": 1}
    card = at_point(CARDS["semanticist-l"], {"steps": 3})
    card = replace(
        card,
        architecture={**META["architecture"], "vae": {**CARDS["semanticist-l"].architecture["vae"], **vae}},
        spec=replace(card.spec, native_size=(128, 128)),
    )
    (kind,) = library("diffusers", ["AutoencoderKL"], "test", "diffusers")
    below = kind(**card.architecture["vae"])
    save_file(
        {key: seeded_tensor(key, tuple(v.shape)) for key, v in below.state_dict().items()}, folder / "vae.safetensors"
    )
    published = {key.replace("dit.blocks.", "dit._orig_mod.blocks."): value for key, value in state().items()}
    published |= {"nested_sampler.arange": torch.arange(24), "repa_encoder.x": torch.zeros(1)}
    torch.save(published, folder / "semanticist_tok_L.pkl")
    return build_tokenizer(card, {"model": folder / "semanticist_tok_L.pkl", "vae": folder / "vae.safetensors"})


def test_the_contract_holds_on_seeded_weights(tokenizer: Any) -> None:
    found = check(tokenizer, Engine(), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name: item.detail for item in found}["capabilities"] == "drop, prefix"


def test_a_prefix_decodes_as_the_slots_that_are_left(tokenizer: Any) -> None:
    code = tokenizer.encode(picture())
    first = torch.arange(24).expand(2, -1) < 6
    pictures = []
    for part in (tokenizer.drop(code, first), replace(code, latents=code.latents[:, :, :6]), code):
        torch.manual_seed(1)
        pictures.append(tokenizer.decode(part))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)


def test_guidance_moves_away_from_no_slots(net: Any) -> None:
    with torch.no_grad():
        plain = net.guided(noisy(), ARRAYS["t"], ARRAYS["latents"], 1.0)
        none = net.dit(noisy(), ARRAYS["t"], net.dit.null_cond.expand(2, -1, -1))
        guided = net.guided(noisy(), ARRAYS["t"], ARRAYS["latents"], 3.0)
    torch.testing.assert_close(guided[:, :16] - none[:, :16], 3 * (plain - none)[:, :16], atol=1e-3, rtol=0)
    assert torch.equal(guided[:, 16:], plain[:, 16:])
