"""Learned tokenizers against what the authors' own code computed from the same seeded weights (tests/parity/tokenizers)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import seeded_audio, seeded_image, seeded_tensor
from torch import Tensor

from tokbench import weights
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.reconstruct import Engine
from tokbench.spec import Card, Option
from tokbench.types import Code, Stream

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests" / "parity" / "tokenizers"


def rotary_rows(weight: np.ndarray, part: str, heads: int) -> np.ndarray:
    """Cut q, k or v from a fused projection; q and k go from interleaved to half-split rotary order."""
    rows = weight.reshape(3, -1, weight.shape[-1])["qkv".index(part)]
    if part == "v":
        return rows
    split = rows.reshape(heads, -1, 2, weight.shape[-1])
    return split.transpose(0, 2, 1, 3).reshape(rows.shape)


class Case:
    """One golden: the recorded arrays and the adapter on the seeded weights."""

    def __init__(self, name: str, family: str, tmp: Path, options: dict[str, Option]) -> None:
        folder = GOLDENS / name
        self.meta = json.loads((folder / "golden.json").read_text())
        self.arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "golden.npz").items()}
        keys: dict[str, Any] = json.loads((folder / "keys.json").read_text())
        state = {}
        for key, (official, shape, *part) in keys.items():
            array = seeded_tensor(official, tuple(shape)).numpy()
            if part:
                array = rotary_rows(array, part[0], self.meta["architecture"]["num_attention_heads"])
            state[key] = torch.from_numpy(np.ascontiguousarray(array))
        cards = {card.name: card for card in read_catalog(ROOT / "adapters" / f"{family}.toml")}
        card = at_point(cards[name], {})
        card = replace(card, architecture=self.meta["architecture"], options=options)
        path = tmp / "weights" / card.weights[0].file
        path.parent.mkdir(parents=True)
        save_file(state, path)
        found = weights.resolve(card.weights, owner=name, offline=True, overrides={"model": path}, cache=tmp / "cache")
        self.adapter = build(card, found)
        self.stride = int(self.meta["reconstruction_stride"])

    def recorded_code(self, suffix: str = "") -> Code:
        indices = self.arrays[f"indices{suffix}"].long()
        size = self.adapter.spec.codebook_size[0]
        return Code(tuple(Stream(str(k), size, row) for k, row in enumerate(indices.unbind(1))))


def build(card: Card, paths: dict[str, Path]) -> Any:
    from tokbench.registry import build_tokenizer

    return build_tokenizer(card, paths)


def stacked(code: Code) -> Tensor:
    return torch.stack([stream.indices for stream in code.streams], dim=1)


CODECS = [
    ("encodec-24khz", "encodec", {"bandwidth": 6.0}, (9600, 8111), 0),
    ("dac-24khz", "dac", {"num_codebooks": 4}, (9600, 8111), 320),
    ("mimi", "mimi", {"num_codebooks": 8}, (30720, 23111), 1920),
]


@pytest.mark.parametrize(("name", "family", "options", "lengths", "hop"), CODECS, ids=[case[0] for case in CODECS])
def test_codec_equals_official_code(
    name: str, family: str, options: dict[str, Option], lengths: tuple[int, int], hop: int, tmp_path: Path
) -> None:
    case = Case(name, family, tmp_path, options)
    for suffix, batch, length in (("", 2, lengths[0]), ("_ragged", 1, lengths[1])):
        signal = seeded_audio(name + suffix.replace("_", "-"), batch, length)
        if hop:  # what the official code does before its encoder, and the engine here
            signal = torch.nn.functional.pad(signal, (0, -length % hop))
        expected = case.arrays[f"indices{suffix}"].long()
        assert expected.unique().numel() > 10
        assert torch.equal(stacked(case.adapter.encode(signal)), expected)
        decoded = case.adapter.decode(case.recorded_code(suffix))
        recorded = case.arrays[f"recon_from_code{suffix}"]
        assert decoded.shape[:2] == (batch, 1)
        assert -(-decoded.shape[-1] // case.stride) == recorded.shape[-1]
        assert recorded.std() > 1e-3
        torch.testing.assert_close(decoded[..., :: case.stride], recorded, atol=1e-4, rtol=0)


def test_encodec_lower_bandwidth_equals_official_code(tmp_path: Path) -> None:
    case = Case("encodec-24khz", "encodec", tmp_path, {"bandwidth": 1.5})
    code = case.adapter.encode(seeded_audio("encodec-24khz", 2, 9600))
    assert len(code.streams) == 2
    assert torch.equal(stacked(code), case.arrays["indices_1p5kbps"].long())
    torch.testing.assert_close(
        case.adapter.decode(code)[..., :: case.stride], case.arrays["recon_1p5kbps"], atol=1e-4, rtol=0
    )


def test_wan_equals_official_code(tmp_path: Path) -> None:
    case = Case("wan2.1-vae", "wan", tmp_path, {})
    clip = seeded_image("wan2.1-vae", 9, 32, 48).transpose(0, 1)[None].contiguous() * 2 - 1
    latents = case.adapter.encode(clip).latents
    torch.testing.assert_close(latents, case.arrays["latents_unscaled"], atol=1e-4, rtol=0)
    decoded = case.adapter.decode(Code(latents=case.arrays["latents_unscaled"]))
    assert decoded.shape == clip.shape
    # diffusers clamps inside `decode`, the official module does not.
    recorded = case.arrays["recon_from_code"]
    assert recorded.std() > 1e-2
    torch.testing.assert_close(decoded[..., :: case.stride, :: case.stride], recorded.clamp(-1, 1), atol=1e-4, rtol=0)


LEARNED = [*((name, family, options) for name, family, options, *_ in CODECS), ("wan2.1-vae", "wan", {})]


@pytest.mark.parametrize(("name", "family", "options"), LEARNED, ids=[case[0] for case in LEARNED])
def test_the_contract_holds_on_seeded_weights(
    name: str, family: str, options: dict[str, Option], tmp_path: Path
) -> None:
    found = check(Case(name, family, tmp_path, options).adapter, Engine(), trained=False)
    assert [item for item in found if item.verdict == "fail"] == []
    assert {item.name for item in found} >= {"code", "capabilities", "deterministic", "batch = single"}
