"""LPIPS of images and video, with the networks and calibrated heads of the `lpips` package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample
from tokbench.undrawn import Undrawn
from tokbench.weights import WeightsRefused, file_digest, load_state

from ._backbones import Backbone, digest, fetch, require
from ._fused import fuse_named, fuse_pairs
from ._rows import as_frames, by_rows, checked_pair, sum_behind

BACKBONES: Mapping[str, Backbone] = {
    "alex": Backbone(
        "lpips-alex",
        ("alexnet-owt-7be5be79.pth",),
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
    ),
    "vgg": Backbone(
        "lpips-vgg", ("vgg16-397923af.pth",), "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"
    ),
    "squeeze": Backbone(
        "lpips-squeeze",
        ("squeezenet1_1-b8a52dc0.pth",),
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "b8a52dc0",
    ),
}
"""Trunk -> its torchvision weights. The heads, version 0.1, are in the wheel of `lpips`."""

_SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
_EPSILON = 1e-10
_FIRE = (
    ("squeeze", "squeeze_activation"), ("expand1x1", "expand1x1_activation"), ("expand3x3", "expand3x3_activation"),
)  # fmt: skip


class Lpips:
    """Learned Perceptual Image Patch Similarity, version 0.1, a value a row; lower is closer.

    The canonical [0, 1] is mapped to the [-1, 1] of the `lpips` package here and nowhere else: feeding it [0, 1], a mistake
    in circulation, gives lower numbers. Trunks give different scales (VGG about twice AlexNet), so each has its column:
    `lpips_alex`, `lpips_vgg`, `lpips_squeeze`. A clip's value is the mean over its frames.
    A row's bits on the CPU do not depend on its batch.

    Args:
        net: `alex`, `vgg` or `squeeze`.
        weights: The trunk's torchvision weight file (only its `features` are read) where it is in no usual place.

    Raises:
        UsageError: No such net, or `weights` names nothing.
    """

    def __init__(self, *, net: str = "alex", weights: str = "") -> None:
        if net not in BACKBONES:
            raise UsageError(f"lpips: unknown net {net!r}; one of {', '.join(BACKBONES)}")
        self._net, self._weights = net, weights
        self.column = f"lpips_{net}"
        self.undefined: Mapping[str, str] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the trunk's sha256 is one of them."""
        return MetricSpec(
            name="lpips" if self._net == "alex" else self.column,
            modalities=("image", "video"),
            columns=(Column(self.column, "", False, f"LPIPS, {self._net}, per image or clip", atol=1e-5),),
            summary="Learned Perceptual Image Patch Similarity",
            reference="lpips.LPIPS",
            protocol={"net": self._net, "heads": "0.1", "weights": digest(BACKBONES[self._net], self._weights)},
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the trunk where it is absent and `offline` allows it."""
        fetch(BACKBONES[self._net], self._weights, offline)

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: (B,) float64.

        Raises:
            NotApplicable: Neither images nor video.
            UsageError: Shapes differ, or images are too small for the trunk.
            WeightsAbsent: The trunk's weights are not on this machine.
        """
        x, y = checked_pair("lpips", sample)
        least = _SMALLEST[self._net]
        if min(x.shape[-2:]) < least:
            raise UsageError(f"lpips {self._net} needs at least {least} pixels a side, got {tuple(x.shape[-2:])}")
        path = require(BACKBONES[self._net], self._weights)
        model = load(self._net, path, file_digest(path), str(x.device))
        frames = 1 if x.ndim == 4 else x.shape[2]
        values = by_rows(model, as_frames(x), as_frames(y))
        return {self.column: sum_behind(values.reshape(x.shape[0], frames), 1) / frames}


@dataclass(frozen=True)
class Perceptual:
    """LPIPS as the `lpips` package has it, in its own modules: pairs go through the trunk together, in place behind it.

    Attributes:
        scaling: [-1, 1] to the trunk's normalisation.
        trunk: An image to the features of each layer, (n, C, H, W).
        heads: The calibrated weight of each channel, (C,) a layer.
    """

    scaling: nn.Module
    trunk: nn.Module
    heads: tuple[Tensor, ...]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return LPIPS of (n, 3, H, W) pairs in [0, 1], (n,) float64."""
        with torch.inference_mode():
            both = self.scaling(torch.cat([x, y]) * 2 - 1).contiguous(memory_format=torch.channels_last)
            layers = zip(self.trunk(both), self.heads, strict=True)
            return torch.stack([_layer(features, head) for features, head in layers]).sum(0)


def _layer(features: Tensor, head: Tensor) -> Tensor:
    """Return a layer's part, (n,), from the features of n references and their n reconstructions."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True).add_(_EPSILON)
    a, b = (features / length).chunk(2)
    squares = a.sub_(b).square_().permute(0, 2, 3, 1).flatten(1, 2)
    part: Tensor = squares.mean(1, dtype=torch.float64) @ head
    return part


@lru_cache(maxsize=3)
def load(net: str, path: Path, _sha256: str, device: str) -> Perceptual:
    """Build LPIPS with the trunk's weights from a torchvision file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file lacks a tensor of the trunk, or has it in another shape.
    """
    import contextlib
    import warnings

    import lpips

    with warnings.catch_warnings(), contextlib.redirect_stdout(None), Undrawn():
        warnings.simplefilter("ignore")  # torchvision's about `pretrained=`, which lpips still says
        model: Any = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    load_trunk(model.net, path, f"lpips {net}", BACKBONES[net].url)
    model = model.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    fuse_pairs(model.net)
    for module in list(model.net.modules()):
        fuse_named(module, _FIRE)
    heads = tuple(lin.model[-1].weight.flatten().double() for lin in model.lins)
    return Perceptual(model.scaling_layer, model.net, heads)


def load_trunk(trunk: nn.Module, path: Path, owner: str, url: str) -> None:
    """Fill a trunk whose modules are called as `slice2.3` from torchvision's file, where the same one is `features.3`.

    Raises:
        WeightsRefused: The file lacks a tensor of the trunk, or has it in another shape.
    """
    state = load_state(path)
    own = trunk.state_dict()
    theirs = {key: "features." + key.partition(".")[2] for key in own}
    wrong = [name for key, name in theirs.items() if name not in state or state[name].shape != own[key].shape]
    if wrong:
        raise WeightsRefused(
            f"{path} is not torchvision's trunk for {owner}: no fitting {', '.join(wrong[:3])}", f"fetch {url}"
        )
    trunk.load_state_dict({key: state[name] for key, name in theirs.items()})
