"""Feature networks that metrics of the whole set share: one forward pass a batch, whoever asks first."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Sample
from tokbench.undrawn import Undrawn
from tokbench.weights import WeightsRefused, file_digest, load_state

from ._backbones import Backbone, require
from ._chunks import Chunks
from ._fused import ConvRelu

Front = Literal["tf1", "bilinear", "antialias", "clean"]
Variant = Literal["round", "truncate", "clamp", "raw"]
Side = Literal["reference", "reconstruction"]

SIZE = 299
"""Pixels a side that Inception sees."""

INCEPTION = Backbone(
    owner="inception",
    files=("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
"""The weights of 2015-12-05 that FID is defined with; torch-fidelity and pytorch-fid publish one file under two names."""

_CHUNK = {"cpu": 8, "cuda": 32}

_TRUNK = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """What Inception says of B images: `pool` (B, 2048) of the last pooling, `logits` (B, 1008) without the bias."""

    pool: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Inception:
    """The Inception network of 2015-12-05 behind one of the four front ends that are in use.

    | front | input | resize to 299 | then | used by |
    |---|---|---|---|---|
    | `tf1` | 0..255 | TensorFlow 1's bilinear: no half-pixel centres | (x - 128) / 128 | ADM, torch-fidelity |
    | `bilinear` | 0..1 | `F.interpolate`, half-pixel centres, no antialias | 2x - 1 | pytorch-fid |
    | `antialias` | 0..255 | `F.interpolate`, antialias | (x - 128) / 128 | torchmetrics from 1.8 |
    | `clean` | 0..255 | PIL bicubic a channel in float32, clamped to 0..255 | (x - 128) / 128 | clean-fid |

    The network is torch-fidelity's. Batch norms are folded into their convolutions, which moves a feature by about 1e-6.
    Images go through in chunks of one size, so that a row's bits on the CPU do not depend on its batch: fewer images are
    padded with zeros, unless this machine was seen to give the same bits without the padding.

    Attributes:
        front: Which front end.
        weights: A weight file of one's own; empty: the published one, looked for as `docs/protocols.md` says.
    """

    front: Front = "tf1"
    weights: str = ""

    def __post_init__(self) -> None:
        if self.front not in get_args(Front):
            raise UsageError(f"unknown front end {self.front!r}; one of {', '.join(get_args(Front))}")

    def __call__(self, sample: Sample, side: Side, variant: Variant) -> Features:
        """Return the features of one side of a batch of images; computed once a batch, kept in `sample.memo`.

        Args:
            sample: A batch of images (B, 3, H, W) in [0, 1].
            side: The reference is taken as it was encoded, whatever the variant.
            variant: How the decoder's output becomes an image: 8 bits by `round` (half up) or `truncate`, the float
                value by `clamp` to [0, 1] or `raw`, not even clamped.

        Raises:
            NotApplicable: No images.
            WeightsAbsent: The weights are not on this machine.
        """
        if sample.spec.modality != "image" or sample.reference.ndim != 4:
            raise NotApplicable(f"Inception looks at images; {sample.spec.name} is for {sample.spec.modality}")
        images = picture(sample, side, variant)
        place = ("inception", self.front, self.weights, side, "reference" if side == "reference" else variant)
        memo: dict[Any, Any] = sample.memo
        if place not in memo:
            memo[place] = self.of(images)
        found: Features = memo[place]
        return found

    def of(self, images: Tensor) -> Features:
        """Return the features of (B, 3, H, W) float32 images in [0, 1]. Raises WeightsAbsent."""
        path = require(INCEPTION, self.weights)
        network = load(path, file_digest(path), str(images.device))
        with torch.inference_mode():
            return network(FRONTS[self.front](images))


def picture(sample: Sample, side: Side, variant: Variant) -> Tensor:
    """Return one side of a batch as the metric's input, (B, 3, H, W) float32, 8-bit variants at k / 255."""
    if side == "reference":
        return sample.reference
    raw = sample.raw
    if variant == "raw":
        return raw
    if variant == "clamp":
        return raw.clamp(0.0, 1.0)
    # In float32, as the engine rounds: another precision puts some halves on the other side.
    levels = raw.to(torch.float32).clamp(0.0, 1.0) * 255.0
    levels = (levels + 0.5).floor() if variant == "round" else levels.floor()
    return levels / torch.tensor(255.0, device=raw.device)


def tf1(x: Tensor) -> Tensor:
    """Resize as TensorFlow 1 does and normalise: (B, 3, H, W) in [0, 1] -> (B, 3, 299, 299).

    The bits of torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x`, in a fifth of the time: rows of the input
    are stretched once each, not once for every row of the output that needs them.
    """
    for axis in (3, 2):
        x = _stretch(_levels(x) if axis == 3 else x, axis)
    return x.sub_(128).div_(128)


def _stretch(x: Tensor, axis: int) -> Tensor:
    """Resize one axis to `SIZE`: output i lies at i * (input size / output size), between two neighbours; the last repeats."""
    size = x.shape[axis]
    at = torch.arange(SIZE, dtype=x.dtype, device=x.device) * torch.tensor(size / SIZE, dtype=torch.float32)
    low = at.long()
    shape = [1] * x.ndim
    shape[axis] = SIZE
    share = (at - low).reshape(shape)
    first, second = (_along(x, axis, index) for index in (low, (low + 1).clamp_max(size - 1)))
    return second.sub_(first).mul_(share).add_(first)


def _along(x: Tensor, axis: int, index: Tensor) -> Tensor:
    # Either is several times faster than the other on its own axis.
    if axis == x.ndim - 1:
        return torch.gather(x, axis, index.expand(*x.shape[:-1], -1))
    return x.index_select(axis, index)


def bilinear(x: Tensor) -> Tensor:
    """Resize and normalise as pytorch-fid does."""
    return 2 * nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False) - 1


def antialias(x: Tensor) -> Tensor:
    """Resize and normalise as torchmetrics does since 1.8."""
    resized = nn.functional.interpolate(
        _levels(x), size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True
    )
    return (resized - 128) / 128


def clean(x: Tensor) -> Tensor:
    """Resize and normalise as clean-fid does."""
    from PIL import Image

    def resized(plane: Any) -> Any:
        image = Image.fromarray(plane).resize((SIZE, SIZE), resample=Image.Resampling.BICUBIC)
        return np.asarray(image).clip(0, 255)

    planes = _levels(x).cpu().numpy()
    out = np.stack([np.stack([resized(plane) for plane in image]) for image in planes])
    return (torch.from_numpy(out).to(x.device) - 128) / 128


FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tf1": tf1, "bilinear": bilinear, "antialias": antialias, "clean": clean,
}  # fmt: skip


def _levels(x: Tensor) -> Tensor:
    """Scale to 0..255; values at k / 255 become k exactly."""
    return x * 255.0


class Network:
    """Inception from the resized image on."""

    def __init__(self, trunk: nn.Module, head: Tensor, chunk: int) -> None:
        self._trunk, self._head = trunk, head
        self._pool = Chunks(self._pooled, chunk)
        self._logits = Chunks(lambda pool: pool @ self._head, chunk)

    def __call__(self, x: Tensor) -> Features:
        """Return the features of (B, 3, 299, 299) normalised images."""
        pool = self._pool(x)
        return Features(pool, self._logits(pool))

    def _pooled(self, x: Tensor) -> Tensor:
        return torch.flatten(self._trunk(x.contiguous(memory_format=torch.channels_last)), 1)


def unloaded() -> Any:
    """Return torch-fidelity's Inception without weights, on the meta device."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: object) -> None:
            """Keep what the constructor made: it unpickles whatever file it is given, so it is given none of ours."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"), Undrawn():
        return Unloaded("inception", ["2048"], feature_extractor_weights_path=empty)


@lru_cache(maxsize=2)
def load(path: Path, _sha256: str, device: str) -> Network:
    """Build the network from a weight file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file is not a state dict of this network, or would have to be unpickled.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

    whole = unloaded()
    try:
        # Mapped from the file; the fused kernels are the only copy.
        nn.Module.load_state_dict(whole, load_state(path), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsRefused(f"{path} is not Inception's: {reason}", f"fetch {INCEPTION.url}") from error
    whole = whole.float()
    trunk = nn.Sequential(*(getattr(whole, name) for name in _TRUNK)).eval().requires_grad_(False)
    for module in list(trunk.modules()):
        for name, block in module.named_children():
            if isinstance(block, BasicConv2d):
                setattr(module, name, ConvRelu(fuse_conv_bn_eval(block.conv, block.bn)))
    trunk = trunk.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    head: Tensor = whole.fc.weight.detach().T.contiguous().to(device)
    return Network(trunk, head, _CHUNK.get(torch.device(device).type, 4))
