"""Batches of sound for the tests of metrics."""

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
