"""Writes golden_i3d.npz: what five published implementations say of one small clip and of some rows of features.

git clone https://github.com/piergiaj/pytorch-i3d R/pytorch-i3d                                          # at 05783d11
git clone https://github.com/hassony2/kinetics_i3d_pytorch R/kinetics_i3d_pytorch                        # at 786fbae0
git clone https://github.com/JunyaoHu/common_metrics_on_video_quality R/common_metrics_on_video_quality  # at 5f751734
git clone https://github.com/songweige/content-debiased-fvd R/content-debiased-fvd                       # at a1e037ab
git clone https://github.com/NVlabs/TokenBench R/TokenBench                                              # at dcbb7d58
git clone https://github.com/hywang66/LARP R/LARP                                                        # at 8aaed633
PYTHONPATH=tests/helpers python tests/parity/metrics/golden_i3d.py R

common_metrics_on_video_quality holds VideoGPT's code (fvd/videogpt) and StyleGAN-V's formula (fvd/styleganv).
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from i3d_weights import i3d_weights
from torch import Tensor

from tokbench.metrics.i3d import in_torchscript


def clip() -> np.ndarray:
    """Return uint8 (17, 26, 34, 3): waves that move, with some noise."""
    rng = np.random.Generator(np.random.PCG64(7))
    t, y, x = np.mgrid[0:17, 0:26, 0:34]
    out = np.empty((17, 26, 34, 3), np.uint8)
    for channel in range(3):
        a, b, c, d = rng.uniform(2, 9, 4)
        wave = 128 + 70 * np.sin(x / a + t / c) + 45 * np.cos(y / b - t / d + channel)
        out[..., channel] = np.clip(wave + rng.normal(0, 6, wave.shape), 0, 255)
    return out


def module(folder: Path, name: str) -> Any:
    """Import a module of a checked-out repository, with stand-ins for what this script does not call."""
    for absent, what in (("easydict", "EasyDict"), ("torchvision.datasets.video_utils", "VideoClips")):
        stand_in: Any = types.ModuleType(absent)
        setattr(stand_in, what, dict)
        sys.modules[absent] = stand_in
    for known in [key for key in sys.modules if key.partition(".")[0] == name.partition(".")[0]]:
        del sys.modules[known]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def root(matrix: np.ndarray, disp: bool = True) -> Any:
    """Take scipy's square root as the repositories call it: `disp` is gone since 1.17."""
    return _ROOT(matrix) if disp else (_ROOT(matrix), 0.0)


_ROOT = scipy.linalg.sqrtm


def main(place: Path) -> None:
    torch.set_num_threads(1)
    scipy.linalg.sqrtm = root
    state = i3d_weights()
    frames = clip()
    videogpt = module(place / "common_metrics_on_video_quality", "fvd.videogpt.fvd")
    network = module(place / "common_metrics_on_video_quality", "fvd.videogpt.pytorch_i3d").InceptionI3d(
        400, in_channels=3
    )
    network.load_state_dict(state)
    squeezed = module(place / "content-debiased-fvd", "cdfvd.third_party.i3d.utils").preprocess_i3d(frames[None])
    unit = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255
    cropped = videogpt.preprocess(unit)
    tall = videogpt.preprocess(unit.transpose(3, 4))
    original = module(place / "pytorch-i3d", "pytorch_i3d").InceptionI3d(400, in_channels=3)
    original.load_state_dict(state)
    torchscript = module(place / "kinetics_i3d_pytorch", "src.i3dpt").I3D(400)
    torchscript.load_state_dict({in_torchscript(key): value for key, value in state.items()}, strict=False)

    def of(model: torch.nn.Module, x: Tensor) -> np.ndarray:
        with torch.inference_mode():
            found = model.eval()(x)
            found = found[1] if isinstance(found, tuple) else found
            return (found.mean(2) if found.ndim == 3 else found).numpy()

    out = {
        "clip": frames,
        "crop": cropped[0, :, ::8, ::16, ::16].numpy(),
        "crop_tall": tall[0, :, ::8, ::16, ::16].numpy(),
        "squeeze": squeezed[0, :, ::8, ::16, ::16].numpy(),
        # Every number of frames that pads the time axis in another way.
        **{f"videogpt_{n}": of(network, cropped[:, :, :n]) for n in (9, 17)},
        **{f"pytorch_i3d_{n}": of(original, squeezed[:, :, :n]) for n in (9, 12, 14, 16)},
        **{f"torchscript_{n}": of(torchscript, squeezed[:, :, :n]) for n in (9, 16)},
        **distances(place),
    }
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **out)


def distances(place: Path) -> dict[str, Any]:
    rng = np.random.Generator(np.random.PCG64(1))
    a = (rng.standard_normal((90, 24)) @ rng.standard_normal((24, 24)) * 0.8).astype(np.float32)
    b = (a + 0.5 * rng.standard_normal((90, 24)) + 0.3).astype(np.float32)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    tokenbench = module(place / "TokenBench", "token_bench.fvd").FVD
    larp = module(place / "LARP" / "utils" / "fvd", "fvd")
    debiased = module(place / "content-debiased-fvd", "cdfvd.utils.metric_utils").FeatureStats
    cdfvd = module(place / "content-debiased-fvd", "cdfvd.fvd").cdfvd
    styleganv = module(place / "common_metrics_on_video_quality", "fvd.styleganv.fvd")
    videogpt = module(place / "common_metrics_on_video_quality", "fvd.videogpt.fvd")

    def stats(kind: Any, rows: np.ndarray) -> Any:
        found = kind(capture_mean_cov=True)
        found.append(rows)
        return found

    return {
        "rows_a": a,
        "rows_b": b,
        "tokenbench": tokenbench.compute_fvd_from_features(None, x, y),
        "larp": float(larp.FVDCalculator.calculate_fvd(None, stats(larp.FeatureStats, a), stats(larp.FeatureStats, b))),
        "cd_fvd": float(cdfvd.compute_fvd_from_stats(None, stats(debiased, a), stats(debiased, b))),
        "common_styleganv": styleganv.frechet_distance(a, b),
        # It works in place and in the precision it is given.
        "videogpt": float(videogpt.frechet_distance(x.double(), y.double())),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
