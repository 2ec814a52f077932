"""Sound tokenizers with an official recording: SNAC, SpeechTokenizer, S3Tokenizer v2 and X-Codec 2 on the same seeded weights.

Each folder holds what the official code (for X-Codec 2: transformers) computed for a small configuration; `keys.json` the names
and shapes of its weights, `published` the number and the sha256 of those of the published configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import seeded_audio, seeded_tensor
from torch import Tensor

from tokbench.adapters.nn.checkpoint import skeleton
from tokbench.adapters.nn.filterbanks import kaldi_filter_banks, pad_end, whisper_log_mel
from tokbench.adapters.nn.whisper_fsq import SpeechEncoder
from tokbench.adapters.speechtokenizer import SpeechCodec
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Option
from tokbench.types import Code, Stream

ROOT = Path(__file__).parents[3]
GOLDENS = Path(__file__).parent
FAMILY = {
    "snac-24khz": "snac",
    "speechtokenizer": "speechtokenizer",
    "s3tokenizer-v2-25hz": "s3tokenizer",
    "xcodec2": "neucodec",
}
ATOL = 1e-4


class Golden:
    """One recording, and the adapter on the seeded weights."""

    def __init__(self, name: str, folder: Path, options: dict[str, Option] | None = None) -> None:
        self.meta: dict[str, Any] = json.loads((GOLDENS / name / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDENS / name / "golden.npz").items()}
        shapes: dict[str, list[int]] = json.loads((GOLDENS / name / "keys.json").read_text())
        path = folder / "model.safetensors"
        save_file({key: seeded_tensor(key, tuple(shape)) for key, shape in shapes.items()}, path)
        cards = {card.name: card for card in read_catalog(ROOT / "adapters" / f"{FAMILY[name]}.toml")}
        card = at_point(cards[name], {})
        self.published = card.architecture
        card = replace(card, architecture=self.meta["architecture"], options={**card.options, **(options or {})})
        self.adapter: Any = build_tokenizer(card, {"model": path})
        self.stride = int(self.meta["reconstruction_stride"])

    def indices(self, suffix: str = "") -> Tensor:
        return self.arrays[f"indices{suffix}"].long()

    def reconstruction(self, decoded: Tensor, suffix: str = "") -> None:
        recorded = self.arrays[f"recon_from_code{suffix}"]
        assert recorded.std() > 1e-3
        torch.testing.assert_close(decoded[..., :: self.stride], recorded, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_the_card_has_the_published_configuration(name: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path, {"num_codebooks": 4} if name == "speechtokenizer" else None)
    published = {key: value or 0 for key, value in golden.meta["published_architecture"].items()}
    assert published
    if name == "xcodec2":  # the card names none: the class's own defaults are the published values
        from transformers import Xcodec2Config

        config = Xcodec2Config()
        for key, value in published.items():
            found = getattr(config, key)
            if key == "semantic_model_config":
                assert {field: getattr(found, field) for field in value} == value
            else:
                assert (list(found) if isinstance(value, list) else found) == value, key
        return
    card = {key: value for key, value in golden.published.items() if key in published}
    assert card == published


MODULES: dict[str, Callable[[], Any]] = {"speechtokenizer": SpeechCodec, "s3tokenizer-v2-25hz": SpeechEncoder}


@pytest.mark.parametrize("name", ["snac-24khz", *MODULES])
def test_full_size_has_the_published_keys_and_shapes(name: str) -> None:
    published = json.loads((GOLDENS / name / "golden.json").read_text())["published"]
    if name == "snac-24khz":
        from snac import SNAC

        cards = {card.name: card for card in read_catalog(ROOT / "adapters" / "snac.toml")}
        module = skeleton(lambda: SNAC(**{**cards[name].architecture, "attn_window_size": None}))
    else:
        module = skeleton(MODULES[name])
    shapes: list[list[Any]] = [[key, list(value.shape)] for key, value in module.state_dict().items()]
    if name == "speechtokenizer":  # stored with weight norm, folded here
        shapes = [pair for key, shape in shapes for pair in unfolded(key, shape)]
    assert len(shapes) == published["tensors"]
    assert hashlib.sha256(json.dumps(sorted(shapes)).encode()).hexdigest() == published["keys_sha256"]


def unfolded(key: str, shape: list[int]) -> list[list[Any]]:
    if not key.endswith(("conv.weight", "convtr.weight")):
        return [[key, shape]]
    stem = key.removesuffix("weight")
    return [[f"{stem}weight_g", [shape[0], 1, 1]], [f"{stem}weight_v", shape]]


def test_snac_equals_the_official_code_at_every_rate_and_with_its_noise(tmp_path: Path) -> None:
    golden = Golden("snac-24khz", tmp_path)
    assert golden.adapter.spec.downsample == (2048,)
    for suffix, batch, length in (("", 2, 14336), ("_ragged", 1, 9111)):
        x = pad_end(seeded_audio("snac-24khz" + suffix.replace("_", "-"), batch, length), 2048)
        code = golden.adapter.encode(x)
        assert [stream.indices.shape[1] for stream in code.streams] == [x.shape[-1] // 512 // k for k in (4, 2, 1)]
        for k, stream in enumerate(code.streams):
            assert torch.equal(stream.indices, golden.arrays[f"indices_{k}{suffix}"].long())
        with patch("torch.randn", lambda *shape, **_: torch.zeros(*shape)):
            golden.reconstruction(golden.adapter.decode(code), suffix)
        if not suffix:
            with patch("torch.randn", lambda *shape, **_: torch.ones(*shape)):
                golden.reconstruction(golden.adapter.decode(code), "_noise_one")
            torch.manual_seed(1)
            drawn = golden.adapter.decode(code)
            assert (drawn - golden.adapter.decode(code)).abs().max() > 1e-4
            torch.manual_seed(1)
            assert torch.equal(golden.adapter.decode(code), drawn)
    with pytest.raises(ValueError, match="multiples of 2048"):
        golden.adapter.encode(torch.zeros(1, 1, 2047))


def test_speechtokenizer_equals_the_official_code_and_its_first_books_are_prefixes(tmp_path: Path) -> None:
    golden = Golden("speechtokenizer", tmp_path, {"num_codebooks": 4})
    for suffix, batch, length in (("", 2, 9600), ("_ragged", 1, 8111)):
        code = golden.adapter.encode(seeded_audio("speechtokenizer" + suffix.replace("_", "-"), batch, length, 16_000))
        found = torch.stack([stream.indices for stream in code.streams])
        assert torch.equal(found, golden.indices(suffix))
        assert found.unique().numel() > 10
        golden.reconstruction(golden.adapter.decode(code), suffix)
    two = Golden("speechtokenizer", tmp_path, {"num_codebooks": 2}).adapter
    assert [s.codebook for s in two.encode(seeded_audio("speechtokenizer-ragged", 1, 8111, 16_000)).streams] == [
        "0",
        "1",
    ]
    assert torch.equal(
        torch.stack([s.indices for s in two.encode(seeded_audio("speechtokenizer-ragged", 1, 8111, 16_000)).streams]),
        found[:2],
    )
    with pytest.raises(ValueError, match="decodes 2 streams; this code has 4"):
        two.decode(code)


def test_s3tokenizer_equals_the_official_code(tmp_path: Path) -> None:
    golden = Golden("s3tokenizer-v2-25hz", tmp_path)
    for suffix, batch, length in (("", 2, 16000), ("_ragged", 1, 11111)):
        x = seeded_audio("s3tokenizer-v2-25hz" + suffix.replace("_", "-"), batch, length, 16_000)
        projected = golden.adapter._module.projected(whisper_log_mel(x[:, 0]))
        torch.testing.assert_close(projected, golden.arrays[f"projected{suffix}"], atol=ATOL, rtol=0)
        (stream,) = golden.adapter.encode(x).streams
        assert torch.equal(stream.indices, golden.indices(suffix))
        assert stream.indices.unique().numel() > 10


def test_xcodec2_equals_the_recorded_library(tmp_path: Path) -> None:
    golden = Golden("xcodec2", tmp_path)
    for suffix, batch, length in (("", 2, 9600), ("_ragged", 1, 8111)):
        x = seeded_audio("xcodec2" + suffix.replace("_", "-"), batch, length, 16_000)
        code = golden.adapter.encode(x)
        assert torch.equal(code.streams[0].indices[:, None], golden.indices(suffix))
        assert golden.adapter.decode(code).shape == x.shape
        whole = Code((Stream("0", 65536, golden.indices(suffix)[:, 0]),), side={"samples": torch.tensor([10**6])})
        golden.reconstruction(golden.adapter.decode(whole), suffix)
    padded = pad_end(x, 320, at_least=1)[:, 0]
    features = kaldi_filter_banks(torch.nn.functional.pad(padded, (160, 160)))
    torch.testing.assert_close(features, golden.arrays["input_features_ragged"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_the_recorded_configuration_obeys_the_contract(name: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path, {"num_codebooks": 4} if name == "speechtokenizer" else None)
    failed = [item for item in check(golden.adapter, Engine(), trained=False) if item.verdict == "fail"]
    assert failed == []
