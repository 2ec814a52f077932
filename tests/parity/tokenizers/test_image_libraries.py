"""Image tokenizers that a library computes: against official recordings where there are any, else against the bare class."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import seeded_image, seeded_tensor
from torch import Tensor

from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, Stream

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests" / "parity" / "tokenizers"
CATALOGS = ("flux2-vae", "flextok-vae", "asymmetric-vae", "consistency-decoder", "kandinsky-movq", "emu3")
CARDS = {card.name: card for name in CATALOGS for card in read_catalog(ROOT / "adapters" / f"{name}.toml")}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
TINY: dict[str, dict[str, Any]] = {
    "flux2-vae": {
        "class": "AutoencoderKLFlux2", **BLOCKS, "block_out_channels": [8, 16], "layers_per_block": 1,
        "latent_channels": 32, "norm_num_groups": 4,
    },
    "flextok-vae-c8": {
        "class": "AutoencoderKL", **BLOCKS, "block_out_channels": [8, 16], "layers_per_block": 1,
        "latent_channels": 8, "norm_num_groups": 4,
    },
    "asymmetric-vae-x1.5": {
        "class": "AsymmetricAutoencoderKL", **BLOCKS, "down_block_out_channels": [8, 16], "layers_per_down_block": 1,
        "up_block_out_channels": [16, 32], "layers_per_up_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    },
    "consistency-decoder": {
        "class": "ConsistencyDecoderVAE", "encoder_block_out_channels": [8, 16], "encoder_layers_per_block": 1,
        "encoder_down_block_types": ["DownEncoderBlock2D"] * 2, "encoder_norm_num_groups": 4,
        "decoder_block_out_channels": [32, 64], "decoder_layers_per_block": 1,
        "decoder_down_block_types": ["ResnetDownsampleBlock2D"] * 2,
        "decoder_up_block_types": ["ResnetUpsampleBlock2D"] * 2,
    },
}  # fmt: skip
# Parameters of the full classes in millions, from the size of the published file or the class itself.
SIZES = {
    "flux2-vae": 84.05, "flextok-vae-c4": 83.65, "kandinsky-movq": 67.83,
    "emu3-visiontokenizer": 270.74, "emu3-visiontokenizer-video": 270.74,
}  # fmt: skip


def bare(architecture: dict[str, Any]) -> Any:
    import diffusers

    arguments = dict(architecture)
    torch.manual_seed(11)
    return getattr(diffusers, arguments.pop("class"))(**arguments).eval()


def adapter(card: Card, state: dict[str, Tensor], folder: Path) -> Any:
    path = folder / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return build_tokenizer(card, {"model": path})


def tiny(name: str, folder: Path) -> tuple[Any, Any]:
    module = bare(TINY[name])
    card = at_point(CARDS[name], {})
    card = replace(card, architecture=TINY[name], spec=replace(card.spec, downsample=(2, 2)))
    return module, adapter(card, module.state_dict(), folder)


@pytest.mark.parametrize("name", sorted(TINY))
def test_equals_the_bare_class(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny(name, tmp_path)
    image = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        latents = module.encode(image).latent_dist.mode()
        torch.manual_seed(3)
        expected = module.decode(latents).sample
    code = tokenizer.encode(image)
    assert code.latents is not None
    assert code.latents.shape[1] == tokenizer.spec.latent_channels
    assert torch.equal(code.latents, latents)
    torch.manual_seed(3)
    assert torch.equal(tokenizer.decode(code), expected)


@pytest.mark.parametrize("name", sorted(TINY))
def test_obeys_the_contract(name: str, tmp_path: Path) -> None:
    _, tokenizer = tiny(name, tmp_path)
    assert [c for c in check(tokenizer, Engine(), trained=False) if c.verdict in {"fail", "warn"}] == []


@pytest.mark.parametrize("name", sorted(SIZES))
def test_full_size(name: str) -> None:
    from tokbench.adapters.nn.checkpoint import skeleton

    card = CARDS[name]
    if "class" in card.architecture:
        module = skeleton(lambda: bare(dict(card.architecture)))
    else:
        import transformers

        module = skeleton(lambda: transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**card.architecture)))
    count = sum(value.numel() for value in module.state_dict().values())
    assert round(count / 1e6, 2) == SIZES[name]


MOVQ = (
    (r"^encoder\.down\.(\d)\.", r"encoder.down_blocks.\1."),
    (r"^decoder\.up\.(\d)\.", lambda found: f"decoder.up_blocks.{3 - int(found[1])}."),
    (r"\.block\.", ".resnets."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attn\.", ".attentions."),
    (r"^(encoder.*attentions\.\d)\.norm\.", r"\1.group_norm."),
    (r"^(decoder.*attentions\.\d)\.norm\.", r"\1.spatial_norm."),
    (r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d)\.proj_out\.", r"\1.to_out.0."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def test_kandinsky_movq_equals_official_movqgan(tmp_path: Path) -> None:
    folder = GOLDENS / "kandinsky-movq"
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / "golden.npz").items()}
    state = {}
    for official, shape in json.loads((folder / "tiny_keys.json").read_text()).items():
        key = official
        for pattern, new in MOVQ:
            key = re.sub(pattern, new, key)
        tensor = seeded_tensor(official, tuple(shape))
        state[key] = tensor.flatten(1) if "attentions" in key and ".to_" in key and tensor.ndim == 4 else tensor
    card = at_point(CARDS["kandinsky-movq"], {})
    architecture = {**card.architecture, "block_out_channels": [32, 64, 64, 128], "num_vq_embeddings": 512}
    card = replace(card, architecture=architecture, spec=replace(card.spec, codebook_size=(512,)))
    tokenizer = adapter(card, state, tmp_path)
    image = seeded_image("movqgan-67m", *arrays["shape"].tolist()) * 2 - 1
    code = tokenizer.encode(image)
    assert arrays["indices"].unique().numel() > 3
    assert torch.equal(code.streams[0].indices, arrays["indices"].long())
    seen = tokenizer.unquantized(image, "0")
    found = tokenizer.neighbours("0").choose_near(seen.flatten(0, -2), 1, torch.zeros(seen[..., 0].numel()).double())
    assert torch.equal(found.view_as(arrays["indices"]), arrays["indices"].long())
    decoded = tokenizer.decode(Code((Stream("0", 512, arrays["indices"].long()),)))
    assert arrays["reconstruction"].std() > 1e-2
    torch.testing.assert_close(decoded[..., ::2, ::2], arrays["reconstruction"], atol=1e-4, rtol=0)
    assert [c for c in check(tokenizer, Engine(), trained=False) if c.verdict in {"fail", "warn"}] == []


def test_emu3_clips_equal_official_code(tmp_path: Path) -> None:
    folder = GOLDENS / "emu3-vq"
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / "golden.npz").items()}
    meta = json.loads((folder / "golden.json").read_text())
    card = at_point(CARDS["emu3-visiontokenizer-video"], {})
    import transformers

    from tokbench.adapters import emu3

    module = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**meta["architecture"]))
    from_key = {}
    for key, value in module.state_dict().items():
        official = key.replace("down_block.down.", "down.").replace("up_block.up.", "up.")
        official = official.replace("middle_block.attn_norm.", "mid.attn_1.norm.").replace("middle_block.", "mid.")
        official = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", official)
        official = re.sub(r"\.([qkv])_proj\.", r".\1.", official).replace(".out_proj.", ".proj_out.")
        matrix = ".attn" in official and value.ndim == 2
        from_key[official] = tuple(value.shape) + ((1, 1) if matrix else ())
    state = {
        key: torch.zeros(shape, dtype=torch.int64) if key.endswith("tracked") else seeded_tensor(key, shape)
        for key, shape in from_key.items()
    }
    assert set(emu3._layout(state, ())) == set(module.state_dict())
    tokenizer = adapter(replace(card, architecture=meta["architecture"]), state, tmp_path)
    clip = seeded_image("emu3-vq", 8, 32, 48).transpose(0, 1)[None] * 2 - 1
    code = tokenizer.encode(clip)
    assert arrays["video_indices"].unique().numel() > 3
    assert torch.equal(code.streams[0].indices, arrays["video_indices"].long())
    decoded = tokenizer.decode(code)
    assert decoded.shape == clip.shape
    torch.testing.assert_close(decoded[..., ::2, ::2], arrays["video_reconstruction"], atol=1e-4, rtol=0)
