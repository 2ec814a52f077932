"""Weights of I3D that are functions of their tensors' names, for recording goldens and for the tests that use them."""

from __future__ import annotations

from seeded import seeded_tensor
from torch import Tensor

from tokbench.metrics.i3d import tensors


def i3d_weights() -> dict[str, Tensor]:
    """Return a state dict in pytorch-i3d's layout, with kernels large enough that clips still differ at the end."""
    found = {}
    for name, shape in tensors().items():
        tensor = seeded_tensor(name, shape)
        found[name] = tensor * (1.6 if "conv3d.weight" in name else 1.0)
    return found
