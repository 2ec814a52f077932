"""Cosmos tokenizers of images and clips against the official code on seeded weights, and the keys of all published sizes."""

from __future__ import annotations

import hashlib
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

from tokbench.adapters import cosmos
from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.adapters.nn.cosmos import haar, inverse_haar
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.convert import convert
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, Stream
from tokbench.weights import WeightsRefused

GOLDENS = Path(__file__).parent
CARDS = {card.name: card for card in read_catalog(GOLDENS.parents[2] / "adapters" / "cosmos.toml")}
NAMES = sorted(path.parent.name for path in GOLDENS.glob("cosmos-*/golden.json"))
DISCRETE = [name for name in NAMES if CARDS[name].spec.kind == "discrete"]
FULL: dict[str, Any] = json.loads((GOLDENS / "cosmos" / "keys.json").read_text())


class Golden:
    """One recorded configuration: the card at tiny sizes, its input, the official state dict and what came out."""

    def __init__(self, name: str) -> None:
        self.meta: dict[str, Any] = json.loads((GOLDENS / name / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDENS / name / "golden.npz").items()}
        self.card: Card = replace(at_point(CARDS[name], {}), architecture=self.meta["architecture"])

    def signal(self) -> Tensor:
        image = seeded_image(self.meta["seed"], *self.meta["input"]) * 2 - 1
        return image.transpose(0, 1)[None] if self.card.spec.modality == "video" else image

    def state(self) -> dict[str, Tensor]:
        """Return all the official module has: idle convolutions too, and the tables a traced module saves beside it."""
        state = {key: seeded_tensor(key, *entry) for key, entry in expand(self.meta["keys"]).items()}
        ends = ("3d",) if self.card.spec.modality == "video" else ("",)
        tables = [f"{side}{end}.{table}" for end in ends for side in ("encoder.patcher", "decoder.unpatcher")
                  for table in ("wavelets", "_arange")]  # fmt: skip
        tables += ["quantizer._levels", "quantizer._basis"] if "levels" in self.card.architecture else []
        return state | {key: torch.ones(2) for key in tables}

    def code(self) -> Code:
        if self.card.spec.kind == "continuous":
            return Code(latents=self.arrays["latents"])
        return Code((Stream("0", 64_000, self.arrays["indices"].long()),))

    def tokenizer(self, folder: Path) -> Any:
        save_file(self.state(), folder / "autoencoder.safetensors")
        return build_tokenizer(self.card, {"model": folder / "autoencoder.safetensors"})


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert expected.std() > 1000 * atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_both_kinds_of_code_of_images_and_clips_are_recorded() -> None:
    recorded = {(CARDS[name].spec.modality, CARDS[name].spec.kind) for name in NAMES}
    assert recorded == {(modality, kind) for modality in ("image", "video") for kind in ("discrete", "continuous")}
    patches = {Golden(name).meta["architecture"]["patch"] for name in NAMES}
    assert patches == {2, 4}


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_official_code(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer, stride = golden.tokenizer(tmp_path), golden.meta["stride"]
    code = tokenizer.encode(golden.signal())
    if name in DISCRETE:
        assert golden.arrays["indices"].unique().numel() > 10
        assert torch.equal(code.streams[0].indices, golden.arrays["indices"].long())
        close(tokenizer.unquantized(golden.signal(), "0"), golden.arrays["latents"].movedim(1, -1))
    else:
        close(code.latents, golden.arrays["latents"])
    decoded = tokenizer.decode(golden.code())
    assert decoded.shape == golden.signal().shape
    close(decoded[..., ::stride, ::stride], golden.arrays["reconstruction"])


@pytest.mark.parametrize("name", NAMES)
def test_obeys_the_contract(name: str, tmp_path: Path) -> None:
    found = check(Golden(name).tokenizer(tmp_path), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    verdicts = {item.name: item.verdict for item in found}
    assert {"code", "capabilities", "deterministic", "batch = single", "odd sizes"} <= verdicts.keys()
    assert verdicts["odd sizes"] == "pass"


@pytest.mark.parametrize("name", sorted(CARDS))
def test_full_configuration_has_the_official_keys(name: str) -> None:
    architecture, official = CARDS[name].architecture, FULL[name]
    built = {
        key: tuple(value.shape) for key, value in skeleton(partial(cosmos.network, architecture)).state_dict().items()
    }
    lines = [f"{key} {'x'.join(map(str, shape))}" for key, shape in sorted(built.items())]
    millions = sum(math.prod(shape) for shape in built.values()) / 1e6
    assert (len(built), round(millions, 2)) == (official["tensors"], official["millions"])
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == official["sha256"]
    # Of the first release's idle convolutions all are known, and no convolution that works is taken for one.
    unused = {key.rpartition(".conv3d")[0] for key in cosmos.idle(architecture)} - {
        key.rpartition(".conv3d")[0] for key in built
    }
    assert sorted(unused) == official["idle"]


def test_cards_and_architectures_agree() -> None:
    assert FULL.keys() == CARDS.keys()
    for name, card in CARDS.items():
        stride = tuple(card.architecture["stride"])
        assert card.spec.downsample == stride
        assert "x".join(map(str, stride)) in name or f"{stride[0]}x{stride[1]}" in name
        if card.spec.modality == "video":
            assert (card.spec.frames.first, card.spec.frames.step) == (1, stride[0])
        if card.spec.kind == "discrete":
            assert card.spec.codebook_size == (math.prod(card.architecture["levels"]),)
        else:
            assert card.spec.latent_channels == card.architecture["code"]


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 3, 4, 2, 6)])
def test_wavelets_are_means_and_differences_and_undo_themselves(shape: tuple[int, ...]) -> None:
    x = seeded_tensor("wavelets", shape)
    bands = haar(x)
    assert bands.shape == (shape[0], 3 * 2 ** (len(shape) - 2), *(side // 2 for side in shape[2:]))
    pool = torch.nn.functional.avg_pool2d if len(shape) == 4 else torch.nn.functional.avg_pool3d
    torch.testing.assert_close(bands[:, :3], pool(x, 2))
    torch.testing.assert_close(inverse_haar(bands), x)


@pytest.mark.parametrize("name", ["cosmos-dv8x16x16", "cosmos-tokenize1-cv4x8x8-360p"])
def test_clips_are_causal_and_one_frame_is_a_clip(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer, clip = golden.tokenizer(tmp_path), golden.signal()
    step = tokenizer.spec.frames.step
    whole, first = tokenizer._latents(clip), tokenizer._latents(clip[:, :, : 1 + step])
    assert whole.shape[2] == 1 + (clip.shape[2] - 1) // step
    torch.testing.assert_close(whole[:, :, :2], first, atol=1e-5, rtol=0)
    picture = tokenizer.encode(clip[:, :, :1])
    torch.testing.assert_close(tokenizer._latents(clip[:, :, :1]), whole[:, :, :1], atol=1e-5, rtol=0)
    assert tokenizer.decode(picture).shape == clip[:, :, :1].shape


def test_levels_stay_exact_in_half_precision(tmp_path: Path) -> None:
    tokenizer = Golden("cosmos-di16x16").tokenizer(tmp_path)
    tokenizer.to("cpu", "bfloat16")
    indices = torch.arange(64_000).view(1, 200, 320)
    assert torch.equal(tokenizer._fsq.codes_to_indices(tokenizer._fsq.indices_to_codes(indices)), indices)
    assert tokenizer._fsq.reach.dtype == torch.float32
    assert tokenizer.encode(Golden("cosmos-di16x16").signal()).streams[0].indices.dtype == torch.int64


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_module_is_refused_until_it_is_converted(tmp_path: Path) -> None:
    golden = Golden("cosmos-di16x16")
    tokenizer = golden.tokenizer(tmp_path)

    class Autoencoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tokenizer.module

        def forward(self, x: Tensor) -> Tensor:
            return self.net.signal(self.net.latents(x))

    traced = torch.jit.trace(Autoencoder(), golden.signal(), check_trace=False)
    torch.jit.save(traced.net, tmp_path / "autoencoder.jit")
    with pytest.raises(WeightsRefused, match=r"TorchScript") as refused:
        build_tokenizer(golden.card, {"model": tmp_path / "autoencoder.jit"})
    assert "tokbench convert" in str(refused.value.fix)
    assert "autoencoder.jit" in str(refused.value.fix)
    assert convert(tmp_path / "autoencoder.jit", tmp_path / "converted.safetensors") == len(
        tokenizer.module.state_dict()
    )
    again = build_tokenizer(golden.card, {"model": tmp_path / "converted.safetensors"})
    assert torch.equal(
        again.encode(golden.signal()).streams[0].indices, tokenizer.encode(golden.signal()).streams[0].indices
    )


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    golden = Golden("cosmos-tokenize1-cv4x8x8-360p")
    state = golden.state()
    state["encoder.down.1.downsample.conv2.conv3d.weight"] = torch.zeros(64, 64, 3, 1, 1)
    save_file(state, tmp_path / "more.safetensors")
    with pytest.raises(WeightsRefused, match=r"unexpected: encoder\.down\.1\.downsample\.conv2\.conv3d\.weight"):
        build_tokenizer(golden.card, {"model": tmp_path / "more.safetensors"})
    old = Golden("cosmos-dv8x16x16")
    state = old.state()
    del state["encoder.down.1.downsample.conv1.conv3d.weight"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(WeightsRefused, match=r"missing: encoder\.down\.1\.downsample\.conv1\.conv3d\.weight"):
        build_tokenizer(old.card, {"model": tmp_path / "less.safetensors"})
