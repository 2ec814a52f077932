"""LPIPS of images and video, with the networks and calibrated heads of the `lpips` package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample
from tokbench.weights import WeightsRefused, file_digest, load_state

from ._backbones import Backbone, digest, fetch, require
from ._rows import by_rows, checked_pair, sum_behind

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
        values = by_rows(lambda a, b: _values(model, a, b), _as_frames(x), _as_frames(y))
        return {self.column: sum_behind(values.reshape(x.shape[0], frames), 1) / frames}


def _values(model: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return LPIPS of (n, 3, H, W) pairs in [0, 1], (n,)."""
    with torch.inference_mode():
        a, b = ((side * 2 - 1).contiguous(memory_format=torch.channels_last) for side in (x, y))
        return model(a, b).flatten()


def _as_frames(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.movedim(2, 1).flatten(0, 1)


@lru_cache(maxsize=3)
def load(net: str, path: Path, _sha256: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Build LPIPS with the trunk's weights from a torchvision file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file lacks a tensor of the trunk, or has it in another shape.
    """
    import contextlib
    import warnings

    import lpips

    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")  # torchvision's about `pretrained=`, which lpips still says
        model: Any = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    state = load_state(path)
    own = model.net.state_dict()
    # slice2.3.weight of lpips is features.3.weight of torchvision.
    theirs = {key: "features." + key.partition(".")[2] for key in own}
    wrong = [name for key, name in theirs.items() if name not in state or state[name].shape != own[key].shape]
    if wrong:
        raise WeightsRefused(
            f"{path} is not torchvision's trunk for lpips {net}: no fitting {', '.join(wrong[:3])}",
            f"fetch {BACKBONES[net].url}",
        )
    model.net.load_state_dict({key: state[name] for key, name in theirs.items()})
    model = model.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return model  # type: ignore[no-any-return]
