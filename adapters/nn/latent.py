"""Puts a network with two halves, and the quantizer between them, behind the tokenizer protocol."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Neighbours

from .checkpoint import dtype_of, place
from .quantize import Quantizer


class LatentTokenizer:
    """`net.latents(x)`, a quantizer or none, `net.image(latents)`.

    Args:
        spec: Of the tokenizer.
        net: Filled, frozen, in eval mode; `latents` maps (B, 3, H, W) to (B, C, *grid) and `image` maps them back.
        quantizer: A module inside `net`, which moves with it; None where the latents are the code.
    """

    def __init__(self, spec: TokenizerSpec, net: Any, quantizer: Quantizer | None) -> None:
        self.spec, self._net, self._quantizer = spec, net, quantizer

    def to(self, device: str, dtype: str) -> None:
        """Move the network; distances to rows of a table stay float32."""
        place(self._net, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in `spec.input_range` to streams of indices, or to latents (B, C, *grid)."""
        latents = self._latents(x)
        return Code(latents=latents) if self._quantizer is None else Code(self._quantizer.encode(latents))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to a float32 image (B, 3, H, W), nominally in `spec.input_range`, unclamped."""
        latents = code.latents if self._quantizer is None else self._quantizer.decode(code.streams)
        if latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        image: Tensor = self._net.image(latents.to(dtype_of(self._net)))
        return image.float()

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one codebook. Raises NotApplicable where the code is continuous."""
        return self._discrete().neighbours(codebook)

    @torch.no_grad()
    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the latents (B, *grid, D) that one table is searched with.

        Raises:
            NotApplicable: The code is continuous, or not the nearest rows of tables that are searched once.
        """
        return self._discrete().seen(self._latents(x), codebook)

    def _latents(self, x: Tensor) -> Tensor:
        latents: Tensor = self._net.latents(x.to(dtype_of(self._net)))
        return latents

    def _discrete(self) -> Quantizer:
        if self._quantizer is None:
            raise NotApplicable(f"{self.spec.name} has no codebook")
        return self._quantizer
