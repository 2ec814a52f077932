"""The two tokenizers that ship their weights are the baselines their cards say they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokbench import contract
from tokbench.data import Item, load, open_source
from tokbench.reconstruct import Engine, reconstruct
from tokbench.registry import build_tokenizer, expand
from tokbench.session import find_weights
from tokbench.spec import AudioPrepare, EvalProtocol, ImagePrepare
from tokbench.types import Tokenizer


def build(name: str) -> Tokenizer:
    (card,) = expand([name])
    weights, _, missing = find_weights(card, offline=True)
    assert missing is None
    assert sum(Path(path).stat().st_size for path in weights.values()) < 5_000_000
    return build_tokenizer(card, {role: Path(path) for role, path in weights.items()})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))


def jpeg_at_least(pixels: np.ndarray, bits_per_pixel: float) -> float:
    """Return the PSNR of the smallest JPEG of at least a rate: quality 1 to 95, 4:2:0."""
    found = []
    for quality in range(1, 96):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        rate = 8 * len(file.getvalue()) / (pixels.shape[0] * pixels.shape[1])
        if rate >= bits_per_pixel:
            found.append((rate, psnr(pixels, np.asarray(Image.open(file)))))
    return min(found)[1]


@pytest.mark.slow
def test_the_image_tokenizer_beats_jpeg_at_its_lowest_rate_on_every_photograph() -> None:
    tokenizer = build("tokbench-tiny-image")
    source = open_source("sample:image", "image")
    photos = [key for key in source.keys() if key.startswith("photo/")]  # noqa: SIM118
    assert len(photos) == 9
    for key in photos:
        (item,) = load(source, key, ImagePrepare("adm", 256))
        assert isinstance(item, Item)
        with torch.inference_mode():
            (sample,) = reconstruct(tokenizer, [item], EvalProtocol("image", ImagePrepare()), Engine()).samples
        rate = sum(s.indices[0].numel() * np.log2(s.codebook_size) for s in sample.code.streams) / 256**2
        assert rate < 0.16
        ours = (sample.reconstruction[0] * 255).round().permute(1, 2, 0).numpy()
        pixels = np.ascontiguousarray(item.signal.transpose(1, 2, 0))
        assert psnr(pixels, ours) > jpeg_at_least(pixels, rate) + 0.5, key


@pytest.mark.slow
def test_the_sound_tokenizer_keeps_length_level_and_time() -> None:
    tokenizer = build("tokbench-tiny-audio")
    source = open_source("sample:audio", "audio")
    key = "synth/harmonic-vowel"
    (item,) = load(source, next(k for k in source.keys() if k.startswith(key)), AudioPrepare())  # noqa: SIM118
    assert isinstance(item, Item)
    with torch.inference_mode():
        protocol = EvalProtocol("audio", AudioPrepare(), rounding="none")
        done = reconstruct(tokenizer, [item], protocol, Engine())
    (sample,) = done.samples
    assert done.length_error == 0
    assert sample.raw.shape == sample.reference.shape
    level = 20 * torch.log10(sample.raw.square().mean().sqrt() / sample.reference.square().mean().sqrt())
    assert abs(float(level)) < 1.5
    lag, peak = contract.best_lag(sample.reference[0, 0], sample.raw[0, 0])
    assert abs(lag) <= 1
    assert peak > 0.5


@pytest.mark.parametrize("name", ["tokbench-tiny-image", "tokbench-tiny-audio"])
def test_they_obey_the_contract(name: str) -> None:
    checks = contract.check(build(name), Engine())
    assert contract.passed(checks), checks
