"""Vision transformers that metrics of the whole set look through: an image to one vector, each as its protocol has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tokbench.errors import NotApplicable
from tokbench.types import Sample

from ._chunks import Chunks
from ._hub import Checkpoint, build
from .features import Side, picture

_CHUNK = {"cpu": 4, "cuda": 32}
_OFFSET = 0.1

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Encoder:
    """A network of `transformers` behind PIL's bicubic resize of the 8-bit image (antialiased), as the protocols share it.

    Attributes:
        checkpoint: Where the network is.
        kind: Its class.
        size: Pixels a side that it sees.
        square: Cut the middle square first, where the image is not one; else it is squeezed.
        normal: Mean and standard deviation of R, G, B.
        read: The class and the pixels (B, 3, size, size) to vectors (B, d).
    """

    checkpoint: Checkpoint
    kind: str
    size: int
    square: bool
    normal: tuple[tuple[float, float, float], tuple[float, float, float]]
    read: Callable[[Any, Tensor], Tensor]

    def __call__(self, sample: Sample, side: Side) -> Tensor:
        """Return the vectors of one side of a batch of images, (B, d); computed once a batch, kept in `sample.memo`.

        Raises:
            NotApplicable: No images.
            NotAvailable: transformers or the weights are not on this machine.
        """
        if sample.spec.modality != "image" or sample.reference.ndim != 4:
            raise NotApplicable(f"{self.checkpoint.owner} looks at images; {sample.spec.name} is for other signals")
        memo: dict[Any, Any] = sample.memo
        place = (self.kind, self.checkpoint.hub, self.checkpoint.explicit, self.size, side)
        if place not in memo:
            memo[place] = self.of(picture(sample, side, "round"))
        found: Tensor = memo[place]
        return found

    def of(self, images: Tensor) -> Tensor:
        """Return the vectors of (B, 3, H, W) images at k / 255. Raises NotAvailable."""
        device = str(images.device)
        model = build(self.checkpoint, self.kind, device)
        with torch.inference_mode():
            found: Tensor = _chunks(model, self.read, _CHUNK.get(images.device.type, 4))(self.pixels(images))
        return found

    def pixels(self, images: Tensor) -> Tensor:
        """Return what the network sees of (B, 3, H, W) images at k / 255: (B, 3, size, size), normalised."""
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        small = np.stack([self._resized(Image.fromarray(level)) for level in levels])
        mean, sd = (torch.tensor(values)[:, None, None] for values in self.normal)
        return ((torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255 - mean) / sd).to(images.device)

    def settings(self) -> Mapping[str, object]:
        """Return what a metric's protocol says of it, beside the weights."""
        return {
            "model": self.checkpoint.hub,
            "input": "round",
            "resize": f"PIL bicubic to {self.size}{', middle square' if self.square else ''}",
        }

    def _resized(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if self.square:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


def dinov2(model: str = "facebook/dinov2-large", weights: str = "", owner: str = "fd_dinov2") -> Encoder:
    """Return DINOv2's class token behind the last norm, at 224, as dgm-eval reads it."""
    return Encoder(
        Checkpoint(owner, model, ("config.json",), weights), "Dinov2Model", 224, False, IMAGENET, class_token
    )


def clip(model: str = "openai/clip-vit-large-patch14-336", weights: str = "", owner: str = "cmmd") -> Encoder:
    """Return CLIP's projected image embedding of length 1, at 336, as the CMMD of Google Research reads it."""
    return Encoder(
        Checkpoint(owner, model, ("config.json",), weights),
        "CLIPVisionModelWithProjection", 336, True, OPENAI, projection,
    )  # fmt: skip


def class_token(model: Any, pixels: Tensor) -> Tensor:
    """Return the class token of a Dinov2Model, its position table brought to the grid as the authors' own code does.

    Theirs scales by (grid + 0.1) / table where transformers states the size; features differ in the second digit.
    """
    table: Tensor = model.embeddings.position_embeddings
    fitted = fit_positions(table, pixels.shape[-1] // model.config.patch_size)
    out = torch.func.functional_call(model, {"embeddings.position_embeddings": fitted}, (pixels,))
    token: Tensor = out.last_hidden_state[:, 0]
    return token


def fit_positions(table: Tensor, grid: int) -> Tensor:
    """Return (1, 1 + grid², d) of a table (1, 1 + M², d), the class token's first."""
    side = round((table.shape[1] - 1) ** 0.5)
    if side == grid:
        return table
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + _OFFSET) / side
    scaled = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)


def projection(model: Any, pixels: Tensor) -> Tensor:
    """Return the image embeddings of a CLIPVisionModelWithProjection, each divided by its length."""
    embeds: Tensor = model(pixel_values=pixels).image_embeds
    return F.normalize(embeds, dim=-1)


@lru_cache(maxsize=4)
def _chunks(model: nn.Module, read: Callable[[Any, Tensor], Tensor], size: int) -> Chunks:
    return Chunks(lambda pixels: read(model, pixels), size)
