"""I3D, the Inception of clips: trained on Kinetics-400, its 400 logits are what the Fréchet video distance compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Sample
from tokbench.weights import WeightsRefused, file_digest, load_state

from ._backbones import Backbone, require
from ._rows import as_frames
from .features import Side, Variant, picture

Fit = Literal["crop", "squeeze"]

SIZE = 224
"""Pixels a side that I3D sees."""

FRAMES = 9
"""Frames below which nothing is left of the time axis: it is halved three times, rounding up, and then averaged over two."""

CLASSES = 400

WEIGHTS = Backbone(
    owner="i3d",
    files=("i3d_pretrained_400.pt", "i3d_torchscript.safetensors"),
    url="https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
    sha256="",
)
"""VideoGPT's conversion of TF-Hub's i3d-kinetics-400; StyleGAN-V's after `tokbench convert`. No publisher states a sha256."""

_CHUNK = {"cpu": 1, "cuda": 8}

_STEPS = (
    "Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3", "Mixed_3b", "Mixed_3c",
    "MaxPool3d_4a_3x3", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2", "Mixed_5b", "Mixed_5c",
)  # fmt: skip

_Three = tuple[int, int, int]

_POOLS: Mapping[str, tuple[_Three, _Three]] = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
"""Pooling -> its window and stride."""

_MIXED: Mapping[str, tuple[int, int, int, int, int, int, int]] = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
"""Block -> channels in, and out of its six convolutions: b0, b1a, b1b, b2a, b2b, b3b."""

_WIDE, _LOGITS = 1024, "logits"

_IN_TORCHSCRIPT = {
    "bn": "batch3d", "logits": "conv3d_0c_1x1", "b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1",
    "b2a": "branch_2.0", "b2b": "branch_2.1", "b3b": "branch_3.1",
}  # fmt: skip
"""Parts of a tensor's name -> as kinetics_i3d_pytorch calls them, whose classes StyleGAN-V's archive holds."""


@dataclass(frozen=True)
class I3d:
    """I3D behind one of the two resizes that are in use, both `F.interpolate`, bilinear, half-pixel centres, no antialias.

    | fit | a frame to 224 x 224 |
    |---|---|
    | `crop` | short side to 224, the other rounded up, then the middle |
    | `squeeze` | both sides to 224, whatever the aspect ratio |

    For square clips they are one, rounding aside. Pixels then go from [0, 1] to [-1, 1].

    Attributes:
        fit: Which resize.
        epsilon: Of the batch norms: 1e-3 in TF-Hub's graph, 1e-5 in VideoGPT's port of it.
        weights: A weight file of one's own; empty: the published one, looked for as `docs/protocols.md` says.
    """

    fit: Fit = "crop"
    epsilon: float = 1e-3
    weights: str = ""

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise UsageError(f"unknown fit {self.fit!r}; one of {', '.join(get_args(Fit))}")

    def __call__(self, sample: Sample, side: Side, variant: Variant) -> Tensor:
        """Return the logits of one side of a batch of clips, (B, 400); computed once a batch, kept in `sample.memo`.

        Args:
            sample: A batch of clips (B, 3, T, H, W) in [0, 1].
            side: The reference is taken as it was encoded, whatever the variant.
            variant: How the decoder's output becomes a clip, as in `features.Inception`.

        Raises:
            NotApplicable: No video, or clips of fewer than nine frames.
            WeightsAbsent: The weights are not on this machine.
        """
        if sample.spec.modality != "video" or sample.reference.ndim != 5:
            raise NotApplicable(f"I3D looks at video; {sample.spec.name} is for {sample.spec.modality}")
        clips = picture(sample, side, variant)
        frames, height, width = clips.shape[2:]
        if frames < FRAMES:
            raise NotApplicable(
                f"I3D needs clips of at least {FRAMES} frames, these have {frames}; `frames` of the suite's [prepare] sets it"
            )
        # Where both resizes are one, presets which differ in no more share the pass.
        own: Fit = "squeeze" if _short_side(height, width) == (SIZE, SIZE) else self.fit
        place = ("i3d", own, self.epsilon, self.weights, side, "reference" if side == "reference" else variant)
        memo: dict[Any, Any] = sample.memo
        if place not in memo:
            memo[place] = self.of(clips)
        found: Tensor = memo[place]
        return found

    def of(self, clips: Tensor) -> Tensor:
        """Return the logits of (B, 3, T, H, W) float32 clips in [0, 1]. Raises WeightsAbsent."""
        path = require(WEIGHTS, self.weights)
        network = load(path, file_digest(path), self.epsilon, str(clips.device))
        with torch.inference_mode():
            return network(clips, FITS[self.fit])


def crop(clips: Tensor) -> Tensor:
    """Resize the short side of (B, 3, T, H, W) to 224 and cut the middle."""
    size = _short_side(*clips.shape[-2:])
    top, left = ((side - SIZE) // 2 for side in size)
    return _resized(clips, size)[..., top : top + SIZE, left : left + SIZE]


def squeeze(clips: Tensor) -> Tensor:
    """Resize (B, 3, T, H, W) to 224 x 224."""
    return _resized(clips, (SIZE, SIZE))


FITS: Mapping[Fit, Callable[[Tensor], Tensor]] = {"crop": crop, "squeeze": squeeze}


def _short_side(height: int, width: int) -> tuple[int, int]:
    """Return the height and width that bring the short side to 224.

    By the product of a quotient, as published: its rounding adds a row to some, even square, sizes (of 100 pixels, say).
    """
    scale = SIZE / min(height, width)
    return (SIZE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIZE)


def _resized(clips: Tensor, size: tuple[int, int]) -> Tensor:
    frames = F.interpolate(as_frames(clips), size=size, mode="bilinear", align_corners=False)
    return frames.reshape(clips.shape[0], clips.shape[2], *frames.shape[1:]).movedim(1, 2)


@dataclass(frozen=True)
class Unit:
    """A convolution with the batch norm behind it folded in, and ReLU.

    Attributes:
        weight: (out, in, k, k, k).
        bias: (out,).
        stride: Along all three axes.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activations of (B, in, T, H, W)."""
        side = self.weight.shape[2]
        if side == 1:
            # Of channels that lie together this is a product of matrices, several times faster than as a convolution.
            rows = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
            return torch.relu_(rows).movedim(-1, 1)
        if self.stride == 1:
            return torch.relu_(F.conv3d(x, self.weight, self.bias, padding=side // 2))
        return torch.relu_(F.conv3d(same(x, (side,) * 3, (self.stride,) * 3), self.weight, self.bias, self.stride))


def same(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad (B, C, T, H, W) with zeros as TensorFlow's SAME does: by the size at hand, the odd one behind."""
    pad: list[int] = []
    for size, width, step in zip(x.shape[:1:-1], window[::-1], stride[::-1], strict=True):
        missing = max(width - (size % step or step), 0)
        pad += [missing // 2, missing - missing // 2]
    return F.pad(x, pad) if any(pad) else x


class Network:
    """I3D from clips at their own size on."""

    def __init__(self, units: Mapping[str, Unit], head: tuple[Tensor, Tensor], chunk: int) -> None:
        self._units, self._head, self._chunk = units, head, chunk

    def __call__(self, clips: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits, (B, 400), of (B, 3, T, H, W) in [0, 1].

        On the CPU a clip is resized and seen alone, so that its bits cannot depend on its batch; one keeps all cores busy.
        """
        return torch.cat([self._logits(fit(part)) for part in torch.split(clips, self._chunk)])

    def _logits(self, x: Tensor) -> Tensor:
        x = (2 * x - 1).contiguous(memory_format=torch.channels_last_3d)
        for step in _STEPS:
            if step in _POOLS:
                # Zeros are as good as nothing: what is pooled went through a ReLU.
                window, stride = _POOLS[step]
                x = F.max_pool3d(same(x, window, stride), window, stride)
            else:
                x = self._mixed(step, x) if step in _MIXED else self._units[step](x)
        pooled = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return F.conv3d(pooled, *self._head).flatten(2).mean(2)

    def _mixed(self, block: str, x: Tensor) -> Tensor:
        b0, b1a, b1b, b2a, b2b, b3b = (self._units[f"{block}.{branch}"] for branch in _BRANCHES)
        return torch.cat([b0(x), b1b(b1a(x)), b2b(b2a(x)), b3b(F.max_pool3d(x, 3, 1, padding=1))], dim=1)


_BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")


def units() -> dict[str, tuple[int, int, int]]:
    """Return the name of each convolution -> channels in, channels out, width of its kernel along all three axes."""
    found = {"Conv3d_1a_7x7": (3, 64, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (64, 192, 3)}
    for block, (wide, b0, b1a, b1b, b2a, b2b, b3b) in _MIXED.items():
        sizes = ((wide, b0, 1), (wide, b1a, 1), (b1a, b1b, 3), (wide, b2a, 1), (b2a, b2b, 3), (wide, b3b, 1))
        found |= {f"{block}.{branch}": size for branch, size in zip(_BRANCHES, sizes, strict=True)}
    return found


def tensors() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor of pytorch-i3d's state dict, as VideoGPT's file has them."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (wide, narrow, side) in units().items():
        found[f"{name}.conv3d.weight"] = (narrow, wide, side, side, side)
        found |= {f"{name}.bn.{part}": (narrow,) for part in ("weight", "bias", "running_mean", "running_var")}
    found[f"{_LOGITS}.conv3d.weight"] = (CLASSES, _WIDE, 1, 1, 1)
    found[f"{_LOGITS}.conv3d.bias"] = (CLASSES,)
    return found


def in_torchscript(name: str) -> str:
    """Return what a tensor of `tensors` is called in the file that `tokbench convert` writes of StyleGAN-V's archive."""
    return ".".join(_IN_TORCHSCRIPT.get(part, part.lower()) for part in name.split("."))


@lru_cache(maxsize=2)
def load(path: Path, _sha256: str, epsilon: float, device: str) -> Network:
    """Build the network from a weight file of either layout; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file lacks a tensor of the network, has it in another shape, or would have to be unpickled.
    """
    state = _published(path)
    folded = {name: _folded(state, name, epsilon, device) for name in units()}
    folded["Conv3d_1a_7x7"] = Unit(folded["Conv3d_1a_7x7"].weight, folded["Conv3d_1a_7x7"].bias, stride=2)
    head = (state[f"{_LOGITS}.conv3d.weight"].to(device), state[f"{_LOGITS}.conv3d.bias"].to(device))
    return Network(folded, head, _CHUNK.get(torch.device(device).type, 1))


def _published(path: Path) -> dict[str, Tensor]:
    state = load_state(path)
    wanted = tensors()
    rename = in_torchscript if in_torchscript(next(iter(wanted))) in state else str
    names = {key: rename(key) for key in wanted}
    wrong = [name for key, name in names.items() if name not in state or tuple(state[name].shape) != wanted[key]]
    if wrong:
        raise WeightsRefused(
            f"{path} is not I3D's: no fitting {', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}",
            f"fetch {WEIGHTS.url}",
        )
    return {key: state[name].to(torch.float32) for key, name in names.items()}


def _folded(state: Mapping[str, Tensor], name: str, epsilon: float, device: str) -> Unit:
    """Return a convolution times its batch norm, computed in float64."""
    scale, bias, mean, variance = (
        state[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    gain = scale / (variance + epsilon).sqrt()
    weight = (state[f"{name}.conv3d.weight"].double() * gain[:, None, None, None, None]).float().to(device)
    return Unit(weight.contiguous(memory_format=torch.channels_last_3d), (bias - mean * gain).float().to(device))
