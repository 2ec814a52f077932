"""Mimi, the codec of Moshi (Défossez et al. 2024, arXiv 2410.00037), through transformers' `MimiModel`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import State, assemble, dtype_of, library, place

_FLAT = (
    (re.compile(r"^(encoder|decoder)\.layers\."), r"\1.\1_seanet.layers."),
    (re.compile(r"^(encoder|decoder)_transformer\."), r"\1.\1_transformer."),
    (re.compile(r"^downsample\."), "encoder.downsample."),
    (re.compile(r"^upsample\."), "decoder.upsample."),
)


class Mimi:
    """Mimi with its first K codebooks, one stream each: codebook 0 is the semantic one, the others are acoustic.

    `card.architecture` holds the arguments of `transformers.MimiConfig`; the option `num_codebooks` chooses K.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names, those of the published file or those of the
            installed release.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        config_kind, model_kind = library(
            "transformers", ["MimiConfig", "MimiModel"], card.name, card.extra or "transformers"
        )
        config: Any = config_kind(**card.architecture)
        path = weights["model"]
        self._module: Any = assemble(
            lambda: model_kind(config),
            load_state(path),
            layouts=[flat_layout],
            optional=["*.codebook.initialized"],
            source=str(path),
        )
        self._count = int(card.options.get("num_codebooks", config.num_quantizers))
        self._codebook_size = int(config.codebook_size)
        self._hop = int(config.frame_size)
        self.spec = replace(
            card.spec, codebook_size=(self._codebook_size,) * self._count, token_rate=self._count * config.frame_rate
        )

    def to(self, device: str, dtype: str) -> None:
        """Move the network, and let the codebooks be derived anew: the library keeps them once derived."""
        place(self._module, device, dtype)
        for part in self._module.modules():
            if hasattr(part, "_embed"):
                part._embed = None

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1], T a multiple of the hop, to K streams of indices (B, T / hop).

        Other lengths are refused: the official code pads them with zeros first, transformers pads inside every layer.
        """
        if x.shape[-1] % self._hop:
            raise ValueError(f"{self.spec.name} takes multiples of {self._hop} samples, not {x.shape[-1]}")
        codes = self._module.encode(x.to(dtype_of(self._module)), num_quantizers=self._count).audio_codes
        return Code(
            tuple(Stream(str(k), self._codebook_size, row.contiguous()) for k, row in enumerate(codes.unbind(dim=1)))
        )

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, frames x hop) float32."""
        indices = torch.stack([stream.indices for stream in code.streams], dim=1)
        signal: Tensor = self._module.decode(indices).audio_values
        return signal.float()


def flat_layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename the flat keys of the published file (`encoder.layers`) to the two halves of newer releases."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        renamed = key
        for pattern, target in _FLAT:
            renamed = pattern.sub(target, renamed)
        out[renamed if key not in wanted and renamed in wanted else key] = value
    return out
