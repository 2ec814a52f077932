"""MaskGIT's family, TiTok's and the DINOv2-style ones against the authors' own code on the same seeded weights.

Each folder holds what the official code computed for a small configuration; `one-dimensional-keys.json` the number and the
sha256 of all keys and shapes of every published configuration, from the official code too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import seeded_image, seeded_tensor
from torch import Tensor, nn

from tokbench.adapters import maskgit, softvq, titok, xqgan
from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.adapters.nn.keynames import Rule, published_name
from tokbench.adapters.nn.quantize import nearest_tick
from tokbench.adapters.nn.vit1d import DINOV2_NAMES
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, Droppable, LatentSource, Neighbouring, Stream
from tokbench.weights import WeightsRefused

ROOT = Path(__file__).parents[3]
GOLDENS = Path(__file__).parent
KEYS: dict[str, dict[str, Any]] = json.loads((GOLDENS / "one-dimensional-keys.json").read_text())

Names = Callable[[Card], Sequence[Rule]]
FAMILIES: dict[str, tuple[Callable[[Card], nn.Module], Names]] = {
    "maskgit": (maskgit.module_of, maskgit.names),
    "titok": (titok.module_of, titok.names),
    "one-d-piece": (titok.module_of, titok.names),
    "ta-titok": (titok.module_of, titok.names),
    "tokenset": (titok.module_of, titok.names),
    "softvq": (softvq.module_of, lambda _: DINOV2_NAMES),
    "xq-gan": (xqgan.module_of, xqgan.names),
}
CARDS = {card.name: card for family in FAMILIES for card in read_catalog(ROOT / "adapters" / f"{family}.toml")}
PROVEN = (
    "maskgit-vqgan",
    "mage-vqgan",
    "vqgan-plus-10bit",
    "maskbit-14bit",
    "titok-l-32",
    "titok-s-128",
    "titok-sl-256-vq8k",
    "titok-bl-128-vae",
    "one-d-piece-s-256",
    "ta-titok-bl-128-vq",
    "ta-titok-sl-128-vae",
    "tokenset-128",
    "softvq-bl-64",
    "maetok-b-128",
    "xqgan-vq-4096",
    "xqgan-vp2-4096",
    "imagefolder-msvr10p2-4096",
    "xqgan-msbr10p2-4096",
)
ATOL = 1e-4


# ------------------------------------------------------------------------------------------------------- goldens


class Golden:
    """One recorded tokenizer, and the adapter on the seeded weights, loaded from a file laid out as the published one."""

    def __init__(self, name: str, folder: Path) -> None:
        self.meta: dict[str, Any] = json.loads((GOLDENS / name / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDENS / name / "golden.npz").items()}
        spec: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in self.meta["spec"].items()}
        card = at_point(CARDS[name], {})
        options = {"tokens": self.meta["architecture"]["latents"]} if "tokens" in card.options else {}
        self.card = replace(
            card, architecture=self.meta["architecture"], spec=replace(card.spec, **spec), options=options
        )
        self.folder = folder

    def settled(self) -> Card:
        """The card with what the published configuration adds to it."""
        if config := self.meta.get("config"):
            known = softvq.described(config, mixture="tables" in self.card.architecture)
            return replace(self.card, architecture={**known, **self.card.architecture})
        return self.card

    def state(self) -> dict[str, Tensor]:
        """Every tensor under its published name."""
        make, names = FAMILIES[self.meta["family"]]
        module = skeleton(lambda: make(self.settled()))
        state = {}
        for key, value in module.state_dict().items():
            official = published_name(key, names(self.card))
            tensor = seeded_tensor(official, tuple(value.shape))
            if official in self.meta.get("unit", ()):
                tensor = tensor * float(np.float32(math.sqrt(math.prod(value.shape[1:]))))
            state[official] = tensor
        state |= {key: torch.tensor(value) for key, value in self.meta.get("constant", {}).items()}
        return state | {key: torch.ones(3) for key in self.meta.get("extra", ())}

    def build(self, state: dict[str, Tensor] | None = None) -> Any:
        state = self.state() if state is None else state
        path = self.folder / "model.safetensors"
        if self.meta["family"] == "xq-gan":
            path = self.folder / "model.pt"
            torch.save({"ema": state, "model": {key: torch.zeros(1) for key in state}, "steps": 3}, path)
        else:
            save_file(state, path)
        paths = {"model": path}
        if "config" in self.meta:
            paths["config"] = self.folder / "config.json"
            paths["config"].write_text(json.dumps(self.meta["config"]))
        if self.meta["family"] == "ta-titok":
            paths["text"] = self.folder / "text.safetensors"
            save_file(text_state(), paths["text"])
        return build_tokenizer(self.card, paths)

    def image(self, tokenizer: Any) -> Tensor:
        picture = self.meta["image"]
        low, high = tokenizer.spec.input_range
        return seeded_image(picture["seed"], picture["batch"], picture["height"], picture["width"]) * (high - low) + low

    def code(self, indices: Tensor) -> Code:
        streams = zip(self.card.spec.codebook_size, indices.long().unbind(1), strict=True)
        return Code(tuple(Stream(str(k), size, row) for k, (size, row) in enumerate(streams)))


def text_state() -> dict[str, Tensor]:
    """A CLIP text model of two layers, in transformers' key names."""
    shapes = {"embeddings.token_embedding.weight": (49408, 64), "embeddings.position_embedding.weight": (77, 64)}
    shapes |= {f"final_layer_norm.{kind}": (64,) for kind in ("weight", "bias")}
    for layer in range(2):
        stem = f"encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{stem}self_attn.{name}.weight": (64, 64), f"{stem}self_attn.{name}.bias": (64,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{stem}{norm}.weight": (64,), f"{stem}{norm}.bias": (64,)}
        shapes |= {f"{stem}mlp.fc1.weight": (256, 64), f"{stem}mlp.fc1.bias": (256,)}
        shapes |= {f"{stem}mlp.fc2.weight": (64, 256), f"{stem}mlp.fc2.bias": (64,)}
    state = {f"text_model.{key}": seeded_tensor(f"text_model.{key}", shape) for key, shape in shapes.items()}
    return state | {"vision_model.post_layernorm.weight": torch.ones(3), "logit_scale": torch.ones(())}


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 10 * ATOL
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


def unquantized(tokenizer: Any, image: Tensor) -> Tensor:
    module = getattr(tokenizer._module, "_module", tokenizer._module)
    with torch.no_grad():
        found: Tensor = module.before_quantizer(image) if hasattr(module, "before_quantizer") else module.encoder(image)
    return found.reshape(-1)


@pytest.mark.parametrize("name", PROVEN)
def test_equals_official_code(name: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path)
    tokenizer, arrays = golden.build(), golden.arrays
    image = golden.image(tokenizer)
    close(unquantized(tokenizer, image)[::7], arrays["unquantized"])
    code = tokenizer.encode(image)
    if "indices" in arrays:
        indices = torch.stack([stream.indices for stream in code.streams], dim=1)
        assert arrays["indices"].unique().numel() > 5
        assert torch.equal(indices, arrays["indices"].long())
        given = golden.code(arrays.get("probe", arrays["indices"]))
    else:
        close(code.latents, arrays["latents"])
        given = Code(latents=arrays["latents"])
    if golden.meta["family"] == "ta-titok":
        batch, context, width = golden.meta["image"]["batch"], 77, golden.meta["architecture"]["text"][1]
        text = seeded_tensor("text_embedding", (batch, context, width)) * math.sqrt(context * width)
        tokenizer._module.caption = text
    decoded = tokenizer.decode(given)
    assert decoded.shape == image.shape
    stride = golden.meta["stride"]
    close(decoded[..., ::stride, ::stride], arrays["reconstruction"])
    for key in arrays:
        if key.startswith("prefix_"):
            short = golden.code(arrays["indices"][..., : int(key.removeprefix("prefix_"))])
            close(tokenizer.decode(short)[..., ::stride, ::stride], arrays[key])


@pytest.mark.parametrize("name", sorted(KEYS))
def test_full_configuration_has_the_published_keys(name: str) -> None:
    card = at_point(CARDS[name], {})
    make, names = FAMILIES[card.family]
    module = skeleton(lambda: make(card))
    assert all(parameter.is_meta for parameter in module.parameters())
    table = sorted([published_name(key, names(card)), list(value.shape)] for key, value in module.state_dict().items())
    assert len(table) == KEYS[name]["count"]
    assert hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest() == KEYS[name]["sha256"]


@pytest.mark.parametrize("name", PROVEN)
def test_obeys_the_contract(name: str, tmp_path: Path) -> None:
    found = check(Golden(name, tmp_path).build(), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name for item in found} >= {"code", "deterministic", "batch = single", "rate"}


@pytest.mark.parametrize("name", PROVEN)
def test_runs_in_half_precision(name: str, tmp_path: Path) -> None:
    tokenizer = Golden(name, tmp_path).build()
    exact = tokenizer.decode(tokenizer.encode(image := Golden(name, tmp_path).image(tokenizer)))
    code = tokenizer.encode(image)
    tokenizer.to("cpu", "bfloat16")
    rough = tokenizer.decode(code)
    assert tokenizer.decode(tokenizer.encode(image)).shape == image.shape
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().mean()) < 0.1 * float(exact.std())


# ------------------------------------------------------------------------------------------------ what they can do


def test_empty_caption_equals_openclip(tmp_path: Path) -> None:
    golden = Golden("ta-titok-bl-128-vq", tmp_path)
    close(golden.build()._module.caption, golden.arrays["caption"])


def test_fewer_tokens_is_an_option_and_a_prefix(tmp_path: Path) -> None:
    golden = Golden("one-d-piece-s-256", tmp_path)
    everything = golden.build()
    image = golden.image(everything)
    whole = everything.encode(image).streams[0].indices
    golden.card = replace(golden.card, options={"tokens": 7})
    short = golden.build().encode(image).streams[0].indices
    assert short.shape == (2, 7)
    assert torch.equal(short, whole[:, :7])
    assert at_point(CARDS["one-d-piece-s-256"], {"tokens": 64}).spec.name == "one-d-piece-s-256?tokens=64"


def test_dropped_tokens_leave_the_others_at_their_places(tmp_path: Path) -> None:
    golden = Golden("one-d-piece-s-256", tmp_path)
    tokenizer = golden.build()
    assert isinstance(tokenizer, Droppable)
    code = golden.code(golden.arrays["indices"])
    first = torch.arange(64).expand(2, -1) < 16
    stride = golden.meta["stride"]
    close(tokenizer.decode(tokenizer.drop(code, first))[..., ::stride, ::stride], golden.arrays["prefix_16"])
    torch.testing.assert_close(tokenizer.decode(tokenizer.drop(code, ~first)).shape, tokenizer.decode(code).shape)
    assert not torch.allclose(
        tokenizer.decode(tokenizer.drop(code, ~first)), tokenizer.decode(tokenizer.drop(code, first))
    )
    with pytest.raises(ValueError, match="same number"):
        tokenizer.drop(code, torch.arange(64).expand(2, -1) < torch.tensor([[3], [4]]))


@pytest.mark.parametrize("name", [name for name in PROVEN if at_point(CARDS[name], {}).spec.kind == "discrete"])
def test_codebooks_know_their_neighbours(name: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path)
    tokenizer = golden.build()
    assert isinstance(tokenizer, Neighbouring)
    assert isinstance(tokenizer, LatentSource)
    image = golden.image(tokenizer)
    for stream in tokenizer.encode(image).streams:
        flat = stream.indices.flatten()[:5]
        draw = torch.full((len(flat),), 0.5, dtype=torch.float64)
        near = tokenizer.neighbours(stream.codebook)
        chosen = near.choose(flat, 3, draw)
        assert bool((chosen != flat).all())
        assert int(chosen.max()) < stream.codebook_size
        seen = tokenizer.unquantized(image, stream.codebook)
        assert seen.shape[:-1] == stream.indices.shape
        if hasattr(near, "choose_near"):  # the entry nearest to what the quantizer saw is the token itself
            some = seen.flatten(0, -2)[:5]
            assert torch.equal(near.choose_near(some, 1, draw[: len(some)]), stream.indices.flatten()[:5])


def test_token_set_has_no_order(tmp_path: Path) -> None:
    golden = Golden("tokenset-128", tmp_path)
    tokenizer, indices = golden.build(), golden.arrays["indices"]
    turned = tokenizer.decode(golden.code(indices.flip(-1)))
    torch.testing.assert_close(turned, tokenizer.decode(golden.code(indices)), atol=ATOL, rtol=0)


def test_ten_scales_share_four_convolutions_as_numpy_rounds_them() -> None:
    ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
    expected = [int(np.argmin(np.abs(ticks - k / 9))) for k in range(10)]
    assert [nearest_tick(k, 10, 4) for k in range(10)] == expected


# ------------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize("name", ["maskgit-vqgan", "titok-l-32", "softvq-bl-64", "xqgan-vp2-4096"])
def test_missing_and_unexpected_keys_are_named(name: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path)
    state = golden.state()
    lost = next(key for key in state if key.endswith("bias"))
    state["decoder.surprise.weight"] = state.pop(lost)
    with pytest.raises(WeightsRefused, match=r"1 keys missing.*1 keys unexpected: decoder\.surprise\.weight"):
        golden.build(state)


@pytest.mark.parametrize("layout", [("ema",), ("model",), ()])
def test_a_state_dict_is_found_where_it_may_lie(layout: tuple[str, ...], tmp_path: Path) -> None:
    golden = Golden("xqgan-vq-4096", tmp_path)
    expected = golden.build()._module.quantizer.branches[0].embedding.weight
    path = tmp_path / ("found.pt" if layout else "found.safetensors")
    if layout:
        torch.save({layout[0]: golden.state(), "steps": 3}, path)
    else:
        save_file(golden.state(), path)
    built: Any = build_tokenizer(golden.card, {"model": path})
    assert torch.equal(built._module.quantizer.branches[0].embedding.weight, expected)
    torch.save({"weights": golden.state()}, tmp_path / "lost.pt")
    with pytest.raises(WeightsRefused, match="model"):
        build_tokenizer(golden.card, {"model": tmp_path / "lost.pt"})


def test_a_configuration_that_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    golden = Golden("softvq-bl-64", tmp_path)
    state = golden.state()
    golden.meta["config"]["tau"] = 0.1
    with pytest.raises(WeightsRefused, match=r"tau 0\.1 for 0\.07"):
        golden.build(state)
    golden.meta["config"] |= {"tau": 0.07, "to_pixel": "siren"}
    with pytest.raises(WeightsRefused, match="to_pixel='siren', which this adapter does not build"):
        golden.build(state)


def test_every_card_says_what_it_is() -> None:
    assert {card.name for card in CARDS.values() if card.status == "available"} - set(KEYS) == {
        "maetok-b-128",
        "maetok-b-128-512",
    }
    for card in CARDS.values():
        assert card.status == "available" or card.notes.startswith(("Planned: ", "Unreleased: "))
        assert card.licence
        assert card.repository
        assert card.status != "available" or {weight.role for weight in card.weights} >= {"model"}
