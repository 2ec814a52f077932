"""Puts a network that codes sound frame by frame, as a vector or as K indices each, behind the tokenizer protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import TokenizerSpec
from tokbench.types import Code

from .checkpoint import dtype_of, place
from .codes import parallel_streams, stacked_indices


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
        whole_frames(x, self.spec.downsample[0], self.spec.name)
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


class CodebookCodec:
    """A module with K indices a frame, one stream a codebook, all codebooks of one size.

    Args:
        spec: Of the tokenizer; its `codebook_size` has K equal entries.
        module: Filled, frozen, in eval mode.
        encode: Maps (B, 1, T) to indices (B, K, frames).
        decode: Maps indices (B, K, frames) to (B, 1, T').
        hop: The samples a frame covers where `encode` takes multiples of them only.
        moved: Called after every move, for what the module derives from its weights and keeps.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        module: Any,
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
        *,
        hop: int = 1,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self._module, self._encode, self._decode, self._hop, self._moved = module, encode, decode, hop, moved

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)
        self._moved()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] to K streams of indices (B, frames).

        Raises:
            ValueError: T is not a multiple of the hop.
        """
        whole_frames(x, self._hop, self.spec.name)
        return Code(parallel_streams(self._encode(x.to(dtype_of(self._module))), self.spec.codebook_size[0]))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, T') float32.

        Raises:
            ValueError: The code has another number of streams.
        """
        return self._decode(stacked_indices(code, len(self.spec.codebook_size), self.spec.name)).float()


def whole_frames(x: Tensor, hop: int, owner: str) -> None:
    """Raise ValueError where (B, C, T) is not made of whole frames of `hop` samples."""
    if x.shape[-1] % hop:
        raise ValueError(f"{owner} takes multiples of {hop} samples, not {x.shape[-1]}")
