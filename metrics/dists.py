"""DISTS of images and video: structure and texture of VGG16's layers, with the weights its authors published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.errors import NotAvailable, UsageError, WeightsAbsent
from tokbench.spec import Column, MetricSpec, WeightFile
from tokbench.types import Sample
from tokbench.weights import ALL_ROLES, WeightsRefused, file_digest, load_state, missing, resolve

from ._backbones import ABSENT, digest, fetch, require
from ._fused import ConvRelu
from ._rows import as_frames, by_rows, checked_pair, sum_behind
from .perceptual import BACKBONES

SHARES = WeightFile(
    "shares",
    "weights.pt",
    package="DISTS_pytorch",
    url="https://raw.githubusercontent.com/dingkeyan93/DISTS/1267d8cb626c98706db3697422701c56a85ebf2e/DISTS_pytorch/weights.pt",
    sha256="f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
)
"""How much each channel's structure (beta) and texture (alpha) count; the package dists-pytorch carries the file."""

_TRUNK = BACKBONES["vgg"]
_STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_CHANNELS = (3, *(stage[-1] for stage in _STAGES))
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_C = 1e-6
_SMALLEST = 16


class Dists:
    """Deep Image Structure and Texture Similarity, a value a row; 0 is equal, lower is closer.

    Of each channel of the image and of five layers of VGG16 (Hanning-weighted L2 pooling in place of max pooling), the means
    compare as texture and the correlation as structure; a weighted sum of both is taken from 1. Images stay at their
    size: the authors' script first brings the short side to 256 where it is longer, so compare at 256 or say so. A
    clip's value is the mean over its frames. A row's bits on the CPU do not depend on its batch.

    Reference: Ding, Ma, Wang and Simoncelli 2020, arXiv 2004.07728; package dists-pytorch; `piq.DISTS`.

    Args:
        weights: VGG16's torchvision weight file, the one of `lpips?net=vgg`, where it is in no usual place.
        shares: The authors' `weights.pt` where it is in no usual place.

    Raises:
        UsageError: `weights` or `shares` names nothing.
    """

    def __init__(self, *, weights: str = "", shares: str = "") -> None:
        self._weights, self._shares = weights, shares
        self.undefined: Mapping[str, str] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the sha256 of both weight files are among them."""
        try:
            path = _find_shares(self._shares)
        except NotAvailable:
            path = None
        return MetricSpec(
            name="dists",
            modalities=("image", "video"),
            columns=(Column("dists", "", False, "DISTS, VGG16, per image or clip", atol=1e-5),),
            summary="Deep Image Structure and Texture Similarity",
            reference="DISTS_pytorch.DISTS; piq.DISTS",
            protocol={
                "resize": "none",
                "weights": digest(_TRUNK, self._weights),
                "shares": ABSENT if path is None else file_digest(path),
            },
        )

    def fetch(self, *, offline: bool) -> None:
        """Download what is absent where `offline` allows it."""
        fetch(_TRUNK, self._weights, offline)
        if not offline and not self._shares and _find_shares("") is None:
            _download_shares()

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: `dists`, (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ, or images are smaller than 16 pixels.
            WeightsAbsent: A weight file is not on this machine.
        """
        x, y = checked_pair("dists", sample)
        if min(x.shape[-2:]) < _SMALLEST:
            raise UsageError(f"dists needs at least {_SMALLEST} pixels a side, got {tuple(x.shape[-2:])}")
        trunk, shares = require(_TRUNK, self._weights), _find_shares(self._shares)
        if shares is None:
            raise WeightsAbsent(
                f"dists needs {SHARES.file} of the package {SHARES.package}",
                f"pip install dists-pytorch, or download {SHARES.url} and name it with dists?shares=/path/to/{SHARES.file}",
            )
        model = load(trunk, file_digest(trunk), shares, file_digest(shares), str(x.device))
        frames = 1 if x.ndim == 4 else x.shape[2]
        values = by_rows(model, as_frames(x), as_frames(y))
        return {"dists": sum_behind(values.reshape(x.shape[0], frames), 1) / frames}


@dataclass(frozen=True)
class Structure:
    """DISTS as a function of pairs.

    Attributes:
        stages: VGG16 cut in front of its pools; each returns what the next one takes.
        texture: Shares of the channels' means, (C,) for the image and each stage; with `structure` they sum to 1.
        structure: Shares of their correlations.
    """

    stages: tuple[nn.Module, ...]
    texture: tuple[Tensor, ...]
    structure: tuple[Tensor, ...]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return DISTS of (n, 3, H, W) pairs in [0, 1], (n,) float64."""
        with torch.inference_mode():
            both = torch.cat([x, y]).contiguous(memory_format=torch.channels_last)
            mean, sd = (both.new_tensor(values)[None, :, None, None] for values in (_MEAN, _SD))
            alike = _alike(both, self.texture[0], self.structure[0])
            layer = (both - mean) / sd
            for stage, texture, structure in zip(self.stages, self.texture[1:], self.structure[1:], strict=True):
                layer = stage(layer)
                alike = alike + _alike(layer, texture, structure)
            return 1.0 - alike


class L2Pool(nn.Module):
    """Root of the Hanning-weighted mean of squares, 3x3, stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(H / 2), ceil(W / 2))."""
        taps = x.new_tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]).add_(1e-12).sqrt_()


def _alike(features: Tensor, texture: Tensor, structure: Tensor) -> Tensor:
    """Return what a layer adds to the similarity, (n,) float64, from the features of n references and n reconstructions."""
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)
    means = rows.mean(1, keepdim=True)
    a, b = (rows - means).chunk(2)
    spread = [(p * q).mean(1).double() for p, q in ((a, a), (b, b), (a, b))]
    m, n = means[:, 0].double().chunk(2)
    close = (2 * m * n + _C) / (m * m + n * n + _C)
    correlated = (2 * spread[2] + _C) / (spread[0] + spread[1] + _C)
    return close @ texture + correlated @ structure


@lru_cache(maxsize=2)
def load(trunk: Path, _trunk_sha256: str, shares: Path, _shares_sha256: str, device: str) -> Structure:
    """Build DISTS from the two weight files; kept for the process, by their content.

    Raises:
        WeightsRefused: A file lacks a tensor, or has it in another shape.
    """
    stages = _stages()
    state = load_state(trunk)
    wrong = []
    for place, conv in stages.items():
        for name, tensor in (("weight", conv.weight), ("bias", conv.bias)):
            key = f"features.{place}.{name}"
            if tensor is None or key not in state or state[key].shape != tensor.shape:
                wrong.append(key)
            else:
                tensor.data = state[key].clone()
    if wrong:
        raise WeightsRefused(
            f"{trunk} is not torchvision's VGG16: no fitting {', '.join(wrong[:3])}", f"fetch {_TRUNK.url}"
        )
    table = load_state(shares)
    sizes = {key: tuple(value.shape) for key, value in table.items()}
    if any(table.get(key, torch.empty(0)).numel() != sum(_CHANNELS) for key in ("alpha", "beta")):
        raise WeightsRefused(f"{shares} holds {sizes}, not alpha and beta of DISTS", f"fetch {SHARES.url}")
    alpha, beta = (table[key].flatten().double().to(device) for key in ("alpha", "beta"))
    total = alpha.sum() + beta.sum()
    convs = list(stages.values())
    parts: list[nn.Module] = []
    for index, widths in enumerate(_STAGES):
        count = len(widths) - 1
        blocks: list[nn.Module] = [ConvRelu(conv) for conv in convs[:count]]
        convs = convs[count:]
        parts.append(nn.Sequential(*([L2Pool()] if index else []), *blocks))
    ready = [
        part.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        for part in parts
    ]
    return Structure(tuple(ready), *(torch.split(share / total, list(_CHANNELS)) for share in (alpha, beta)))


def _stages() -> dict[int, nn.Conv2d]:
    """Return VGG16's convolutions by their place among torchvision's `features`: two places each, and one a pool."""
    out: dict[int, nn.Conv2d] = {}
    place = 0
    for widths in _STAGES:
        for before, after in pairwise(widths):
            out[place] = nn.Conv2d(before, after, 3, padding=1)
            place += 2
        place += 1
    return out


def _find_shares(explicit: str) -> Path | None:
    if explicit:
        overrides = {ALL_ROLES: Path(explicit)}
        wanted = WeightFile(SHARES.role, SHARES.file)
        return resolve([wanted], owner="dists", offline=True, overrides=overrides)[SHARES.role]
    if missing([SHARES], owner="dists"):
        return None
    return resolve([SHARES], owner="dists", offline=True)[SHARES.role]


@lru_cache
def _download_shares() -> None:
    from contextlib import suppress

    with suppress(WeightsAbsent):
        resolve([SHARES], owner="dists", offline=False)
