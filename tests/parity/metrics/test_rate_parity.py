"""Nominal rates against the ones published for known geometries, and payload rates against a real JPEG file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from tokbench.metrics.rate import Rate
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample, Stream


@pytest.mark.parametrize(
    ("rate", "hop", "books", "size", "kbps", "tokens"),
    [
        pytest.param(24_000, 320, 8, 1024, 6.0, 600.0, id="encodec-24khz-6"),
        pytest.param(24_000, 1920, 8, 2048, 1.1, 100.0, id="mimi-8"),
        pytest.param(16_000, 320, 12, 1024, 6.0, 600.0, id="dac-16khz"),
        pytest.param(16_000, 320, 1, 65_536, 0.8, 50.0, id="x-codec2"),
        pytest.param(24_000, 320, 1, 4096, 0.9, 75.0, id="wavtokenizer-75"),
    ],
)
def test_published_audio_rates(rate: int, hop: int, books: int, size: int, kbps: float, tokens: float) -> None:
    samples = rate * 4  # a whole number of frames
    frames = torch.zeros(1, samples // hop, dtype=torch.long)
    code = Code(streams=tuple(Stream(str(q), size, frames) for q in range(books)))
    x = torch.zeros(1, 1, samples)
    spec = TokenizerSpec(name="t", modality="audio", kind="discrete")
    out = Rate()(Sample(("k",), x, x, x, code, spec, sample_rate=rate))
    assert out["kbps"].item() == pytest.approx(kbps, rel=1e-12)
    assert out["tokens_per_second"].item() == pytest.approx(tokens, rel=1e-12)


def test_a_jpeg_file_costs_its_bytes() -> None:
    from PIL import Image

    rng = np.random.RandomState(0)
    images = [(rng.rand(24, 40, 3) * scale).astype(np.uint8) for scale in (16, 255)]
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=60)
        files.append(file.getvalue())
    assert len(files[0]) != len(files[1])
    x = torch.zeros(2, 3, 24, 40)
    spec = TokenizerSpec(name="jpeg", modality="image", kind="payload")
    out = Rate()(Sample(("a", "b"), x, x, x, Code(payload=tuple(files)), spec))
    assert out["bpp"].tolist() == [8 * len(data) / 960 for data in files]
    assert out["compression_ratio"].tolist() == [3 * 960 / len(data) for data in files]
