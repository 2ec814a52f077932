"""The taming family against the authors' own code: same seeded weights, same image, same indices and pictures.

Each folder holds what the official code computed for a small configuration (`golden.npz`) and the number and sha256 of
all keys and shapes of the published configuration (`golden.json`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import seeded_image, seeded_tensor

from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.adapters.nn.quantize import GaussianLevels, gaussian_levels
from tokbench.adapters.nn.taming import TamingNet, official_key
from tokbench.adapters.taming import build, tokenizer
from tokbench.catalog import at_point, read_catalog
from tokbench.spec import Card
from tokbench.types import Code, Stream
from tokbench.weights import WeightsRefused

ROOT = Path(__file__).parents[3]
GOLDENS = Path(__file__).parent
FAMILIES = ("taming", "ldm", "llamagen", "var", "ibq", "rq-vae", "mar", "va-vae", "infinity", "chameleon", "movqgan")

DISCRETE = (
    "taming-vqgan-imagenet-f16-1024",
    "vqgan-gumbel-f8",
    "ldm-vq-f4",
    "ldm-vq-f4-noattn",
    "ldm-vq-f8",
    "ldm-vq-f16",
    "llamagen-vq-ds16",
    "llamagen-vq-ds8",
    "janus-1.3b-vq",
    "ibq-16384",
    "rqvae-8x8x4",
    "chameleon-vq",
    "movqgan-67m",
    "var-vqvae",
    "tokenbridge",
)
CONTINUOUS = (
    "ldm-kl-f4",
    "ldm-kl-f8",
    "ldm-kl-f16",
    "ldm-kl-f32",
    "mar-kl16",
    "va-vae-f16d32",
    "repa-e-e2e-vavae",
    "repa-e-e2e-sdvae",
)
BITS = ("infinity-vae-d16", "infinity-vae-d24", "infinity-vae-d32", "infinity-vae-d64")


def cards() -> dict[str, Card]:
    return {card.name: card for name in FAMILIES for card in read_catalog(ROOT / "adapters" / f"{name}.toml")}


def official_shapes(net: TamingNet, card: Card) -> dict[str, tuple[int, ...]]:
    layout, levels = card.architecture.get("layout", "taming"), len(card.architecture["ch_mult"])
    return {official_key(key, layout, levels): tuple(value.shape) for key, value in net.state_dict().items()}


class Case:
    """One golden: the recorded arrays, the card of the small configuration, and the adapter on seeded weights."""

    def __init__(self, name: str, tmp: Path, *, dtype: str = "float32") -> None:
        self.meta: dict[str, Any] = json.loads((GOLDENS / name / "golden.json").read_text())
        self.arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / name / "golden.npz").items()}
        card = at_point(cards()[self.meta["tokenizer"]], {})
        size = self.meta["codebook_size"]
        spec = replace(card.spec, codebook_size=(size,) * len(card.spec.codebook_size)) if size else card.spec
        if spec.kind == "continuous":
            arch = {**card.architecture, **self.meta["architecture"]}
            spec = replace(spec, latent_channels=arch.get("embed_dim", arch["z_channels"]))
        self.card = replace(card, architecture={**card.architecture, **self.meta["architecture"]}, spec=spec)
        self.shapes = official_shapes(skeleton(lambda: build(self.card)), self.card)
        prefix = self.card.architecture.get("prefix", "")
        state = {
            prefix + key: seeded_tensor(self.meta["aliases"].get(key, key), shape) for key, shape in self.shapes.items()
        }
        self.path = tmp / f"{name}.safetensors"
        save_file(state, self.path)
        self.adapter = tokenizer(self.card, {"model": self.path})
        self.image = seeded_image(*self.meta["seeded_image"]) * 2 - 1

    def check_decoded(self, code: Code) -> None:
        stride = int(self.meta["reconstruction_stride"])
        decoded, recorded = self.adapter.decode(code), self.arrays["recon_from_code"]
        assert decoded.shape == self.image.shape
        assert recorded.std() > 0.05
        torch.testing.assert_close(decoded[..., ::stride, ::stride], recorded, atol=1e-4, rtol=0)


def table_digest(shapes: dict[str, Any]) -> str:
    rows = sorted((key, list(shape)) for key, shape in shapes.items())
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("name", DISCRETE)
def test_indices_and_picture_equal_official_code(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    streams = case.adapter.encode(case.image).streams
    if name == "var-vqvae":
        expected = [case.arrays[f"indices_{k}"].long().view(streams[k].indices.shape) for k in range(6)]
    elif name == "rqvae-8x8x4":
        expected = list(case.arrays["indices"].long().unbind(-1))
    elif name == "tokenbridge":
        expected = list(case.arrays["indices"].long().unbind(1))
    else:
        expected = [case.arrays["indices"].long().view(streams[0].indices.shape)]
    assert len(streams) == len(expected)
    assert torch.cat([row.flatten() for row in expected]).unique().numel() > 10
    for stream, row in zip(streams, expected, strict=True):
        assert torch.equal(stream.indices, row)
    recorded = tuple(Stream(s.codebook, s.codebook_size, row) for s, row in zip(streams, expected, strict=True))
    case.check_decoded(Code(recorded))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_latents_and_picture_equal_official_code(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    latents = case.adapter.encode(case.image).latents
    recorded = case.arrays["latents"]
    assert recorded.std() > 0.05
    torch.testing.assert_close(latents, recorded, atol=1e-4, rtol=0)
    case.check_decoded(Code(latents=recorded))


@pytest.mark.parametrize("name", BITS)
def test_bits_and_picture_equal_official_code(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    streams = case.adapter.encode(case.image).streams
    per_token = case.arrays["bits_0"].shape[-1]
    groups = -(-per_token // 16)
    width = per_token // groups
    recorded = []
    for k in range(7):
        bits = case.arrays[f"bits_{k}"].long()
        for group in bits.split(width, dim=-1):
            word = (group << torch.arange(width - 1, -1, -1)).sum(-1)
            recorded.append(Stream(f"bits-{len(recorded) % groups}", 2**width, word))
    assert [stream.codebook for stream in streams] == [stream.codebook for stream in recorded]
    assert {stream.codebook_size for stream in streams} == {2**width}
    pairs = list(zip(streams, recorded, strict=True))
    equal = sum(int((a.indices == b.indices).sum()) for a, b in pairs)
    total = sum(b.indices.numel() for _, b in pairs)
    assert total == 521 * groups
    # A residual within 1e-6 of zero may take either sign.
    assert equal >= 0.999 * total
    case.check_decoded(Code(tuple(recorded)))


@pytest.mark.parametrize("name", [*DISCRETE, *CONTINUOUS, *BITS])
def test_published_configuration_has_the_official_keys_and_shapes(name: str) -> None:
    meta = json.loads((GOLDENS / name / "golden.json").read_text())
    card = at_point(cards()[meta["tokenizer"]], {})
    net = skeleton(lambda: build(card))
    assert all(value.is_meta for value in net.state_dict().values())
    shapes: dict[str, Any] = {**official_shapes(net, card), **meta["published_keys"]["unused"]}
    assert len(shapes) == meta["published_keys"]["count"]
    assert table_digest(shapes) == meta["published_keys"]["sha256"]


def test_every_card_of_the_cluster_builds_without_allocation() -> None:
    built = 0
    for card in cards().values():
        if card.status != "available":
            continue
        net = skeleton(lambda card=card: build(at_point(card, {})))  # type: ignore[misc]
        assert sum(value.numel() for value in net.state_dict().values()) > 3e7
        assert card.weights
        stride = 2 ** (len(card.architecture["ch_mult"]) - 1)
        assert card.spec.downsample == (stride, stride)
        built += 1
    assert built >= 40


@pytest.mark.slow
def test_janus_reads_the_transformers_layout(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.JanusVQVAEConfig(
        base_channels=32, latent_channels=64, num_embeddings=512, embed_dim=8, image_size=64, num_patches=4
    )
    reference = transformers.JanusVQVAE(config).eval()
    state = {key: seeded_tensor(key, tuple(value.shape)) for key, value in reference.state_dict().items()}
    reference.load_state_dict(state)
    card = cards()["janus-pro-1b-vq"]
    small = {**card.architecture, "ch": 32, "z_channels": 64}
    card = replace(card, architecture=small, spec=replace(card.spec, codebook_size=(512,)))
    path = tmp_path / "model.safetensors"
    save_file({"model.language_model.x": torch.zeros(1), **{f"model.vqmodel.{k}": v for k, v in state.items()}}, path)
    adapter = tokenizer(card, {"model": path})
    image = seeded_image("janus", 1, 64, 64) * 2 - 1
    code = adapter.encode(image)
    indices = code.streams[0].indices
    with torch.no_grad():
        latents = reference.quant_conv(reference.encoder(image))
        picture = reference.decode(indices.view(1, -1))
    assert indices.unique().numel() > 8
    # Not its indices: transformers 5.23 searches without the l2-normalisation of the official code.
    torch.testing.assert_close(adapter.unquantized(image, "0").movedim(-1, 1), latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(adapter.decode(code), picture, atol=1e-4, rtol=0)


def test_gaussian_levels_equal_official_code() -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / "tokenbridge" / "golden.npz").items()}
    torch.testing.assert_close(gaussian_levels(6, 3.0) / 0.6, arrays["level_values"], atol=1e-5, rtol=0)
    quantizer = GaussianLevels(6, scale=1.0)
    probes = arrays["ptq_probe_in"].view(1, 1, -1, 1)
    indices = quantizer.encode(probes)[0].indices.flatten()
    expected = arrays["ptq_probe_indices"].long()
    assert expected.unique().numel() == 64
    assert torch.equal(indices, expected)


def test_moving_averages_replace_raw_weights(tmp_path: Path) -> None:
    case = Case("ibq-16384", tmp_path)
    from safetensors.torch import load_file

    averaged = load_file(case.path)
    raw = {key: value + 1 for key, value in averaged.items()}
    shadow = {"model_ema." + key.replace(".", ""): value for key, value in averaged.items()}
    path = tmp_path / "ema.pt"
    extra = {"model_ema.decay": torch.tensor(0.9), "loss.discriminator.w": torch.zeros(1)}
    torch.save({"state_dict": {**raw, **shadow, **extra}}, path)
    adapter = tokenizer(case.card, {"model": path})
    assert torch.equal(
        adapter.encode(case.image).streams[0].indices, case.adapter.encode(case.image).streams[0].indices
    )


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    case = Case("llamagen-vq-ds16", tmp_path)
    state = load_file(case.path)
    state["encoder.surprise"] = state.pop("encoder.mid.0.norm1.weight")
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsRefused, match=r"encoder\.mid\.block_1\.norm1\.weight.*encoder\.surprise"):
        tokenizer(case.card, {"model": path})


@pytest.mark.parametrize("name", [*DISCRETE, *CONTINUOUS, *BITS])
def test_contract_holds_on_seeded_weights(name: str, tmp_path: Path) -> None:
    from tokbench.contract import check
    from tokbench.reconstruct import Engine

    case = Case(name, tmp_path)
    size = (256, 256) if name in BITS else (128, 128)
    spec = replace(case.card.spec, native_size=size if case.card.spec.native_size else None)
    case.adapter.spec = spec
    assert [c for c in check(case.adapter, Engine(), trained=False) if c.verdict in {"fail", "warn"}] == []
