"""Weights and inputs that are functions of their names, as the recording of the goldens in tests/parity defines them.

Everything is drawn by NumPy's frozen RandomState stream, seeded by the sha256 of a name, so the official code and this one
hold bit-identical weights and inputs without a checkpoint or a data set.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def random_state(name: str) -> np.random.RandomState:
    """Return the random stream that belongs to a name."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))


def seeded_tensor(key: str, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    """Return the tensor of one official state-dict key and shape.

    Args:
        key: the key, exactly as the official code names it.
        shape: the tensor's shape.
        dtype: a floating type, which yields float32 values, or another one, which yields int64 zeros.
    """
    if not dtype.startswith(("float", "bfloat")):
        return torch.zeros(shape, dtype=torch.int64)
    values = random_state(key).standard_normal(shape)
    if key.endswith("running_var"):
        values = 1.0 + 0.1 * np.abs(values)
    elif len(shape) >= 2:
        values = values / math.sqrt(max(1, math.prod(shape[1:])))
    elif key.endswith(("weight", "gamma", "weight_g", "scale")) and len(shape) == 1:
        values = 1.0 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def seeded_image(name: str, batch: int, height: int, width: int) -> Tensor:
    """Return smooth pictures (batch, 3, height, width) in [0, 1]: waves, a disc with an edge, and noise."""
    rng = random_state(name)
    yy, xx = np.mgrid[0:height, 0:width] / max(height, width)
    out = np.empty((batch, 3, height, width))
    for b in range(batch):
        for c in range(3):
            fx, fy, phase = rng.uniform(1, 8), rng.uniform(1, 8), rng.uniform(0, 2 * math.pi)
            out[b, c] = 0.5 + 0.3 * np.sin(2 * math.pi * (fx * xx + fy * yy) + phase)
        cy, cx, r = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.3)
        out[b, :, (yy - cy) ** 2 + (xx - cx) ** 2 < r * r] = rng.uniform(0, 1, size=3)
    out += 0.02 * rng.standard_normal(out.shape)
    return torch.from_numpy(np.clip(out, 0, 1).astype(np.float32))


def seeded_audio(name: str, batch: int, samples: int, rate: int = 24000) -> Tensor:
    """Return waveforms (batch, 1, samples) in [-1, 1]: a few harmonics that swell and fade, and noise."""
    rng = random_state(name)
    t = np.arange(samples) / rate
    out = np.zeros((batch, 1, samples))
    for b in range(batch):
        f0 = rng.uniform(90, 260)
        for k in range(1, 9):
            out[b, 0] += rng.uniform(0.2, 1) / k * np.sin(2 * math.pi * f0 * k * t + rng.uniform(0, 6.28))
        out[b, 0] *= 0.5 + 0.5 * np.sin(2 * math.pi * rng.uniform(2, 5) * t)
        out[b, 0] = 0.5 * out[b, 0] / np.abs(out[b, 0]).max() + 0.01 * rng.standard_normal(samples)
    return torch.from_numpy(np.clip(out, -1, 1).astype(np.float32))
