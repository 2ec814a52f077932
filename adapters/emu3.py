"""Emu3's vision tokenizer through transformers: images and clips on one codebook, from the authors' own file."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Neighbours, Stream, Weights

from .nn.checkpoint import State, dtype_of, place, transformers_model
from .nn.neighbours import TableNeighbours

_RULES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^encoder\.down\.", "encoder.down_block.down."),
        (r"^decoder\.up\.", "decoder.up_block.up."),
        (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
        (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
        (r"\.mid\.", ".middle_block."),
        (r"\.(attn_1|attn\.\d+)\.([qkv])\.", r".\1.\2_proj."),
        (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
    )
]


def _layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename the published keys to those of transformers; 1x1 kernels of the attention become matrices."""
    del wanted
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, new in _RULES:
            key = pattern.sub(new, key)  # noqa: PLW2901
        flat = value.ndim == 4 and key.endswith(("_proj.weight", "out_proj.weight"))
        out[key] = value.flatten(1) if flat else value
    return out


class Emu3:
    """`Emu3VQVAE` of transformers, for images (B, 3, H, W) or, where the card says video, clips (B, 3, T, H, W).

    An image is repeated four times along time and encoded as one latent frame; decoding returns the first of its four
    frames. Clips are cut into chunks of four frames.

    Args:
        card: `architecture` holds the arguments of `Emu3VQVAEConfig`.
        weights: Role `model` -> the published safetensors file.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        self.spec = card.spec
        self._module: Any = transformers_model(
            card, weights, "Emu3VQVAEConfig", "Emu3VQVAE", card.architecture, layouts=[_layout]
        )

    def to(self, device: str, dtype: str) -> None:
        """Move the network; `dtype` is float32, bfloat16 or float16."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map a batch in [-1, 1] to indices (B, h, w) or (B, t, h, w)."""
        indices = self._module.quantize(self._latents(x))
        return Code((Stream("0", self.spec.codebook_size[0], indices.squeeze(1) if x.ndim == 4 else indices),))

    def _latents(self, x: Tensor) -> Tensor:
        """Return what is quantized, (B, t, C, h, w)."""
        signal = x.to(dtype_of(self._module))
        if x.ndim == 4:
            signal = signal.unsqueeze(1).repeat(1, self._module.config.temporal_downsample_factor, 1, 1, 1)
        else:
            signal = signal.transpose(1, 2)
        latents: Tensor = self._module.quant_conv(self._module.encoder(signal).transpose(1, 2))
        return latents.transpose(1, 2)

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map indices back to a float32 batch, nominally in [-1, 1], unclamped."""
        signal: Tensor = self._module.decode(code.streams[0].indices)
        return (signal if signal.ndim == 4 else signal.transpose(1, 2)).float()

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return TableNeighbours(self._module.quantize.embedding.weight)

    @torch.no_grad()
    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with, (B, h, w, D) or (B, t, h, w, D)."""
        del codebook
        latents = self._latents(x).movedim(2, -1).float()
        return latents.squeeze(1) if x.ndim == 4 else latents
