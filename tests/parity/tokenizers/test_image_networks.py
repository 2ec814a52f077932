"""Image tokenizers against what their official code computed from the same seeded weights, and their full key tables."""

from __future__ import annotations

import importlib
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

from tokbench.adapters.nn import checkpoint, network
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, Droppable, LatentNeighbours, LatentSource, Neighbouring, Stream
from tokbench.weights import WeightsRefused

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests" / "parity" / "tokenizers"
NAMES = sorted(
    path.parent.name
    for path in GOLDENS.glob("*/golden.json")
    if "catalog" in (golden := json.loads(path.read_text())) and "input" in golden
)


class Golden:
    """One recorded tokenizer: meta data, arrays, key tables and the card it proves."""

    def __init__(self, name: str) -> None:
        folder = GOLDENS / name
        self.meta: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / "golden.npz").items()}
        tables = json.loads((folder / "keys.json").read_text())
        self.tiny, self.full = expand(tables["tiny"]), expand(tables["full"])
        assert len(self.full) == tables["count"]
        cards = {card.name: card for card in read_catalog(ROOT / "adapters" / f"{self.meta['catalog']}.toml")}
        self.card = at_point(cards[self.meta["card"]], {})

    def tiny_card(self) -> Card:
        spec = {key: tuple(v) if isinstance(v, list) else v for key, v in self.meta["spec"].items()}
        options = self.meta.get("options", self.card.options)
        architecture = self.meta["architecture"]
        return replace(self.card, architecture=architecture, options=options, spec=replace(self.card.spec, **spec))

    def plans(self) -> dict[str, dict[str, Any]]:
        """Role -> which keys its file holds: those with a prefix, nested by prefixes, or arrays of their own."""
        plain = {role: {"prefix": prefix} for role, prefix in self.meta.get("split", {"model": ""}).items()}
        return self.meta.get("files", plain)

    def part(self, plan: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Pick what one file holds out of the whole state."""
        if "nest" in plan:
            return {level: self.part({"prefix": prefix}, state) for level, prefix in plan["nest"].items()}
        if "arrays" in plan:
            return {key: self.arrays[name] for key, (name, _) in plan["arrays"].items()}
        put = self.meta.get("prefix", "")
        return {
            put + key.removeprefix(plan["prefix"]): value
            for key, value in state.items()
            if key.startswith(plan["prefix"])
        }

    def files(self, table: Table, folder: Path) -> dict[str, Path]:
        """Write the seeded weights as the authors' checkpoint is laid out: nested, prefixed, with averages and heads."""
        state = {
            key: seeded_tensor(key, *entry) for key, entry in table.items() if key not in self.meta.get("constants", ())
        }
        for key in self.meta.get("constants", ()):
            state[key] = torch.zeros(table[key][0], dtype=torch.int64)
        state |= {key: torch.ones(3) for key in self.meta.get("extra", ())}
        if self.meta.get("ema"):
            averages = {"model_ema." + key.replace(".", ""): value for key, value in state.items()}
            state = {key: torch.full_like(value, 0.5) for key, value in state.items()} | averages
            state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
        paths = {}
        for role, plan in self.plans().items():
            content = self.part(plan, state)
            paths[role] = folder / f"{role}{self.meta.get('suffix', '.pt')}"
            if paths[role].suffix == ".safetensors":
                save_file(content, paths[role])
                continue
            for key in reversed(self.meta.get("container", [])):
                content = {key: content}
            torch.save(content, paths[role])
        return paths


def code_of(golden: Golden, card: Card) -> Code:
    if card.spec.kind != "discrete":
        return Code(latents=golden.arrays["latents"])
    streams = zip(card.spec.codebook_size, golden.arrays["indices"].long().unbind(1), strict=True)
    return Code(tuple(Stream(str(k), size, row) for k, (size, row) in enumerate(streams)))


def tiny(golden: Golden, folder: Path) -> Any:
    card = golden.tiny_card()
    return build_tokenizer(card, golden.files(golden.tiny, folder))


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    assert expected.std() > 10 * atol
    torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_equals_official_code(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer = tiny(golden, tmp_path)
    low, high = tokenizer.spec.input_range
    image = seeded_image(golden.meta["seed"], *golden.meta["input"]) * (high - low) + low
    atol, stride = golden.meta["atol"], golden.meta["stride"]

    if "features" in golden.arrays:
        features = tokenizer._module.features(image)
        close(features.flatten()[:: golden.meta["features_stride"]], golden.arrays["features"].flatten(), atol)
    code = tokenizer.encode(image)
    if tokenizer.spec.kind == "discrete":
        indices = torch.stack([stream.indices for stream in code.streams], dim=1)
        assert golden.arrays["indices"].unique().numel() > 3
        assert torch.equal(indices, golden.arrays["indices"].long())
    else:
        close(code.latents, golden.arrays["latents"], atol)
    decoded = tokenizer.decode(code_of(golden, golden.tiny_card()))
    assert decoded.shape == image.shape
    close(decoded[..., ::stride, ::stride], golden.arrays["reconstruction"], atol)


@pytest.mark.parametrize("name", NAMES)
def test_full_configuration_has_the_published_keys(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(name)
    seen: dict[str, Any] = {}

    def load_state(path: Path, *, inside: tuple[str, ...] = ()) -> dict[str, Tensor]:
        plan = golden.plans()[path.name]
        if "arrays" in plan:
            return {key: torch.empty(shape, device="meta") for key, (_, shape) in plan["arrays"].items()}
        part = golden.part(plan, {key: torch.empty(shape, device="meta") for key, (shape, _) in golden.full.items()})
        return part[inside[0]] if "nest" in plan else part

    def load_into(module: Any, state: Mapping[str, Tensor], *, drop: Any = (), optional: Any = (), **_: Any) -> None:
        seen.update(module=module, state=state)

    monkeypatch.setattr(checkpoint, "load_into", load_into)
    target = importlib.import_module(golden.card.target.partition(":")[0])
    for room in (checkpoint, network, target):
        monkeypatch.setattr(room, "load_state", load_state, raising=False)
    build_tokenizer(golden.card, {role: Path(role) for role in golden.plans()})
    built = {key: tuple(value.shape) for key, value in seen["module"].state_dict().items()}
    published = {key: tuple(value.shape) for key, value in seen["state"].items()}
    for key in golden.meta.get("constants", ()):
        published.pop(key, None)
    assert built == published
    # Some libraries fill their norms with ones; nothing large may be allocated.
    held = sum(value.numel() for value in seen["module"].parameters() if not value.is_meta)
    assert held < 1e-3 * sum(value.numel() for value in seen["module"].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_obeys_the_contract(name: str, tmp_path: Path) -> None:
    found = check(tiny(Golden(name), tmp_path), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name for item in found} >= {"code", "capabilities", "deterministic", "batch = single", "rate"}


DISCRETE = [name for name in NAMES if "indices" in np.load(GOLDENS / name / "golden.npz") and name != "dalle-dvae"]


@pytest.mark.parametrize("name", DISCRETE)
def test_neighbours_change_every_token_and_decode(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer = tiny(golden, tmp_path)
    code = code_of(golden, golden.tiny_card())
    assert isinstance(tokenizer, Neighbouring)
    streams = []
    for stream in code.streams:
        uniform = torch.linspace(0, 0.99, stream.indices.numel(), dtype=torch.float64)
        near = tokenizer.neighbours(stream.codebook).choose(stream.indices.flatten(), 3, uniform)
        assert ((near != stream.indices.flatten()) & (near >= 0) & (near < stream.codebook_size)).all()
        streams.append(replace(stream, indices=near.view_as(stream.indices)))
    decoded = tokenizer.decode(replace(code, streams=tuple(streams)))
    assert not torch.equal(decoded, tokenizer.decode(code))


@pytest.mark.parametrize("name", DISCRETE)
def test_what_the_quantizer_saw_is_nearest_to_its_index(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer = tiny(golden, tmp_path)
    assert isinstance(tokenizer, LatentSource)
    low, high = tokenizer.spec.input_range
    image = seeded_image(golden.meta["seed"], *golden.meta["input"]) * (high - low) + low
    for stream in tokenizer.encode(image).streams[:4]:
        seen = tokenizer.unquantized(image, stream.codebook)
        assert seen.shape[:-1] == stream.indices.shape
        near = tokenizer.neighbours(stream.codebook)
        if isinstance(near, LatentNeighbours):
            flat = seen.flatten(0, -2)
            found = near.choose_near(flat, 1, torch.zeros(len(flat), dtype=torch.float64))
            assert torch.equal(found, stream.indices.flatten())
        else:
            bits = stream.codebook_size.bit_length() - 1
            assert seen.shape[-1] == bits
            ones = torch.stack([stream.indices >> k & 1 for k in range(bits)], dim=-1).sum(-1)
            assert torch.equal(ones, (seen > 0).sum(-1))


def test_restok_prefix_decodes_as_the_official_code_does(tmp_path: Path) -> None:
    golden = Golden("restok")
    card = replace(golden.tiny_card(), options={"tokens": 8})
    tokenizer = build_tokenizer(card, golden.files(golden.tiny, tmp_path))
    code = tokenizer.encode(seeded_image("restok", *golden.meta["input"])[:1])
    assert torch.equal(code.streams[0].indices, golden.arrays["indices"][:1, 0, :8].long())
    close(tokenizer.decode(code)[..., ::2, ::2], golden.arrays["recon_len8"], 1e-4)


def test_restok_drops_tokens_at_their_places(tmp_path: Path) -> None:
    golden = Golden("restok")
    tokenizer = tiny(golden, tmp_path)
    code = code_of(golden, golden.tiny_card())
    assert isinstance(tokenizer, Droppable)
    first = torch.arange(32).expand(2, -1) < 8
    prefix = replace(code, streams=(replace(code.streams[0], indices=code.streams[0].indices[:, :8]),))
    assert torch.equal(tokenizer.decode(tokenizer.drop(code, first)), tokenizer.decode(prefix))
    others = tokenizer.decode(tokenizer.drop(code, ~first))
    assert not torch.allclose(others, tokenizer.decode(prefix), atol=1e-3)


def test_alit_emits_the_tokens_of_as_many_passes(tmp_path: Path) -> None:
    golden = Golden("alit-small")
    card = replace(golden.tiny_card(), options={"tokens": 16})
    tokenizer = build_tokenizer(card, golden.files(golden.tiny, tmp_path))
    code = tokenizer.encode(seeded_image("alit-small", *golden.meta["input"]))
    assert torch.equal(code.streams[0].indices, golden.arrays["indices_first"].long())
    close(tokenizer.decode(code)[..., ::2, ::2], golden.arrays["reconstruction_first"], 1e-4)


# Tensors and parameters in millions of the official modules of other checkpoints of these families.
VARIANTS = {
    ("open-magvit2", "open-magvit2-128"): (283, 112.02),
    ("open-magvit2", "open-magvit2-pretrain-16384"): (339, 115.09),
    ("wetok", "wetok-24"): (283, 448.41),
    ("wetok", "wetok-768"): (397, 1673.68),
    ("bsq", "bsq-vit-36bit"): (307, 174.84),
}


@pytest.mark.parametrize(("catalog", "name"), VARIANTS)
def test_variants_have_the_published_size(catalog: str, name: str) -> None:
    card = next(card for card in read_catalog(ROOT / "adapters" / f"{catalog}.toml") if card.name == name)
    module = importlib.import_module(card.target.partition(":")[0])
    built = checkpoint.skeleton(lambda: module.network(card.architecture)).state_dict()
    millions = sum(value.numel() for value in built.values()) / 1e6
    assert (len(built), round(millions, 2)) == VARIANTS[catalog, name]


def test_published_cards_agree_with_their_networks() -> None:
    checked = 0
    for catalog in ("open-magvit2", "wetok", "mgvq", "bsq", "unitok"):
        for card in read_catalog(ROOT / "adapters" / f"{catalog}.toml"):
            arch, spec = card.architecture, card.spec
            levels = arch.get("ch_mult") or arch.get("widths")
            stride = 2 ** (len(levels) - 1) if levels else arch.get("patch_size", 16)
            groups = arch.get("num_codebooks") or arch.get("groups") or 1
            bits = arch.get("z_channels") or arch.get("bits")
            entries = 2 ** (bits // groups) if bits else arch.get("entries") or arch["codebook_size"] // groups
            assert spec.downsample == (stride, stride), card.name
            assert spec.codebook_size == (entries,) * groups, card.name
            checked += 1
    assert checked >= 20


@pytest.mark.parametrize("name", ["bsq-vit-18bit", "vfm-vae", "vqgan-lc-100k"])
def test_the_other_nesting_the_official_loader_takes(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    other = {"bsq-vit-18bit": ["state_dict"], "vfm-vae": [], "vqgan-lc-100k": ["model"]}[name]
    golden.meta = {**golden.meta, "container": other}
    if name == "bsq-vit-18bit":
        golden.meta["prefix"] = "module."
    assert tiny(golden, tmp_path).spec.name == golden.card.spec.name


def test_noise_beside_the_code_changes_the_picture_and_is_seeded() -> None:
    from tokbench.adapters.nn.magvit2 import Magvit2

    torch.manual_seed(0)
    net = Magvit2(32, (1, 1), 1, 8, noise=4).eval()
    indices = torch.randint(0, 256, (1, 1, 4, 4))
    pictures = []
    for start in (1, 1, 2):
        torch.manual_seed(start)
        pictures.append(net.decode(indices).detach())
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_thirty_six_bits_survive_the_index() -> None:
    from tokbench.adapters.nn.bits import bits_of, index_of

    signs = torch.rand((2, 36, 3), generator=torch.Generator().manual_seed(1)) > 0.5
    for low_first in (True, False):
        index = index_of(signs, dim=1, low_first=low_first)
        assert index.dtype == torch.int64
        assert int(index.max()) > 2**32
        assert torch.equal(bits_of(index, 36, dim=1, low_first=low_first).bool(), signs)


def test_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    golden = Golden("open-magvit2-imagenet-256")
    table = dict(golden.tiny)
    table["encoder.surprise.weight"] = table.pop("encoder.norm_out.weight")
    with pytest.raises(
        WeightsRefused, match=r"missing: encoder\.norm_out\.weight.*unexpected: encoder\.surprise\.weight"
    ):
        build_tokenizer(golden.tiny_card(), golden.files(table, tmp_path))
