"""Writes golden_fid.npz: what pytorch-fid 0.3.0 and clean-fid 0.1.35 say of a few pictures, with seeded weights.

uv pip install --no-deps --target /tmp/reference pytorch-fid==0.3.0 clean-fid==0.1.35
PYTHONPATH=/tmp/reference python tests/parity/metrics/golden_fid.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np


def pictures(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return uint8 (count, height, width, 3): waves of several colours and frequencies with some noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width]
    out = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        for channel in range(3):
            a, b, c = rng.uniform(2, 15, 3)
            wave = 128 + rng.uniform(20, 70) * np.sin(x / a + c) + rng.uniform(20, 50) * np.cos(y / b + channel)
            out[index, :, :, channel] = np.clip(wave + rng.normal(0, 12, wave.shape), 0, 255)
    return out


def main() -> None:
    import torch

    from tokbench.metrics import seeded

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["TORCH_HOME"] = home
        name = "pt_inception-2015-12-05-6726825d.pth"
        seeded.write("inception", Path(home) / "hub" / "checkpoints" / name)
        from cleanfid.fid import frechet_distance
        from cleanfid.resize import build_resizer
        from pytorch_fid.fid_score import calculate_frechet_distance
        from pytorch_fid.inception import InceptionV3

        images = pictures(4, 48, 56, seed=11)
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        wild = floats * 1.6 - 0.3
        with torch.inference_mode():
            network = InceptionV3([3]).eval()
            features = network(floats)[0].flatten(1).numpy()
            unclamped = InceptionV3([3], normalize_input=False).eval()(wild * 2 - 1)[0].flatten(1).numpy()
        resize = build_resizer("clean")
        resized = np.stack([resize(image) for image in images])
        a = np.random.Generator(np.random.PCG64(1)).gamma(2.0, 0.2, (300, 24)) @ np.diag(np.linspace(0.5, 2, 24))
        b = np.random.Generator(np.random.PCG64(2)).gamma(2.2, 0.2, (280, 24)) @ np.diag(np.linspace(0.6, 1.9, 24))
        moments = (a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
        np.savez_compressed(
            Path(__file__).with_suffix(".npz"),
            images=images,
            pytorch_fid=features[:, ::8],
            pytorch_fid_unclamped=unclamped[:, ::8],
            clean_resized=resized[:, ::11, ::11],
            rows_a=a.astype(np.float32),
            rows_b=b.astype(np.float32),
            pytorch_fid_distance=calculate_frechet_distance(*moments),
            clean_fid_distance=frechet_distance(*moments),
        )


if __name__ == "__main__":
    main()
