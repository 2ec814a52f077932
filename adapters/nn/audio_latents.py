"""Puts a library's continuous audio codec, latents frames first or channels first, behind the tokenizer protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import TokenizerSpec
from tokbench.types import Code

from .checkpoint import dtype_of, place


class LatentCodec:
    """A module with one latent vector a frame.

    Args:
        spec: Of the tokenizer; its `downsample` is the samples a frame covers.
        module: Filled, frozen, in eval mode.
        encode: Maps (B, C, T), T a multiple of the hop, to latents (B, D, T / hop), without sampling.
        decode: Maps latents to (B, C, T).
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        module: Any,
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
    ) -> None:
        self.spec = spec
        self._module, self._encode, self._decode = module, encode, decode

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, C, T) in [-1, 1] to latents (B, D, frames) in the network's dtype."""
        if x.shape[-1] % self.spec.downsample[0]:
            raise ValueError(
                f"{self.spec.name} takes multiples of {self.spec.downsample[0]} samples, not {x.shape[-1]}"
            )
        return Code(latents=self._encode(x.to(dtype_of(self._module))).contiguous())

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map latents to (B, C, T) float32.

        Raises:
            ValueError: The code has no latents.
        """
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        return self._decode(code.latents.to(dtype_of(self._module))).float()
