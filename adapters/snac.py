"""SNAC (Siuzdak et al. 2024, arXiv 2410.14411), codebooks at several frame rates, through the package `snac`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.spec import Card
from tokbench.types import Code, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, dtype_of, library, place, weight_norm


class Snac:
    """SNAC: one stream a codebook, coarse first, each at its own rate.

    `card.architecture` holds the arguments of `snac.SNAC`; an `attn_window_size` of 0 is none. The decoder adds noise drawn
    from torch's global generator, which the engine seeds by sample; encoding draws none.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the published state dict; weight norm in its new or its old form.

    Raises:
        MissingExtra: snac is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        (model_kind,) = library("snac", ["SNAC"], card.name, card.extra or "audio")
        path = weights["model"]
        arguments = {**card.architecture, "attn_window_size": card.architecture.get("attn_window_size") or None}
        self._module: Any = assemble(
            lambda: model_kind(**arguments), load_state(path), layouts=[weight_norm], source=str(path)
        )
        self._size = int(self._module.codebook_size)
        strides = [int(stride) for stride in self._module.vq_strides]
        hop = int(self._module.hop_length)
        self._multiple = hop * math.lcm(strides[0], self._module.attn_window_size or 1)
        self.spec = replace(card.spec, codebook_size=(self._size,) * len(strides), downsample=(self._multiple,))

    def to(self, device: str, dtype: str) -> None:
        """Move the network.

        Raises:
            NotApplicable: Another dtype than float32 for the models with local attention, whose positions are float32.
        """
        if dtype != "float32" and self._module.attn_window_size:
            raise NotApplicable(
                f"{self.spec.name} runs in float32 only: the package's local attention mixes in float32"
            )
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] to streams (B, T / hop / stride), T a multiple of the card's `downsample`."""
        if x.shape[-1] % self._multiple:
            raise ValueError(f"{self.spec.name} takes multiples of {self._multiple} samples, not {x.shape[-1]}")
        codes = self._module.encode(x.to(dtype_of(self._module)))
        return Code(tuple(Stream(str(k), self._size, indices) for k, indices in enumerate(codes)))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, T) float32; the noise comes from torch's global generator."""
        signal: Tensor = self._module.decode([stream.indices for stream in code.streams])
        return signal.float()
