"""Sounds for the tests of metrics, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample


def sound_sample(
    references: Sequence[np.ndarray],
    reconstructions: Sequence[np.ndarray],
    rate: int | None = 16_000,
    modality: Modality = "audio",
) -> Sample:
    """Return a batch of rows (T,) or (C, T) of one length."""
    x, y = (torch.from_numpy(np.stack([np.atleast_2d(row) for row in side])) for side in (references, reconstructions))
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    return Sample(tuple(map(str, range(len(x)))), x, y, y, Code(), spec, sample_rate=rate)


def tones(rate: int, channels: int = 1, seconds: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two tones and noise, and the same at 0.8 of the level with more noise: (C, T) float32 each.

    Numbers recorded from other libraries are of these very signals.
    """
    rng = np.random.RandomState(seed)
    t = np.arange(int(rate * seconds)) / rate
    x = np.stack(
        [
            0.3 * np.sin(2 * np.pi * (180 + 40 * c) * t)
            + 0.1 * np.sin(2 * np.pi * 2500 * t * (1 + 0.3 * t))
            + 0.02 * rng.randn(t.size)
            for c in range(channels)
        ]
    )
    y = 0.8 * x + 0.01 * rng.randn(*x.shape)
    return x.astype(np.float32), y.astype(np.float32)
