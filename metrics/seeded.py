"""Weights drawn from a seed for the feature networks: they measure nothing, but prove arithmetic where real ones are absent.

python -m tokbench.metrics.seeded FOLDER     # inception.pth, alex.pth, vgg.pth, squeeze.pth
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokbench.undrawn import Undrawn

from .features import unloaded

NETWORKS = ("inception", "alex", "vgg", "squeeze")


def write(name: str, path: Path, seed: int = 0) -> Path:
    """Write a state dict that has every key metrics read of the published file, and return `path`.

    Args:
        name: One of `NETWORKS`.
        path: A `.pth` file.
        seed: Of the draw; the same on every machine.

    Raises:
        ValueError: No such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; one of {', '.join(NETWORKS)}")
    rng = np.random.Generator(np.random.PCG64([seed, NETWORKS.index(name)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: _draw(key, shape, rng) for key, shape in _shapes(name)}, path)
    return path


def _shapes(name: str) -> Iterable[tuple[str, tuple[int, ...]]]:
    import torchvision  # type: ignore[import-untyped]

    if name == "inception":
        network = unloaded()
    else:
        build = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[name]
        with torch.device("meta"), Undrawn():
            network = getattr(torchvision.models, build)(weights=None)
    return [(key, tuple(value.shape)) for key, value in network.state_dict().items() if "classifier" not in key]


def _draw(key: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Return a normal near He's for kernels, a mild spread for norms and biases, so that images differ and nothing vanishes."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        gain = 2.0 if key == "fc.weight" else 1.3
        return torch.from_numpy(noise * np.float32(gain / math.sqrt(math.prod(shape[1:]))))
    if key.endswith(("bn.weight", "running_var")):
        return torch.from_numpy(1.0 + 0.2 * np.abs(noise))
    return torch.from_numpy(0.1 * noise)


def main() -> None:
    """Write all of them into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for name in NETWORKS:
        write(name, folder / f"{name}.pth")


if __name__ == "__main__":
    main()
