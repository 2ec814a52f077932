"""Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546) through transformers' `DacModel`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, dtype_of, library, place, weight_norm


class Dac:
    """DAC with its first K residual codebooks, one stream each.

    `card.architecture` holds the arguments of `transformers.DacConfig`; the option `num_codebooks` chooses K. This is
    the plain encode and decode path: no loudness normalisation and no chunks, unlike the official command line. The
    decoders of the 16 and 24 kHz models return 8 samples less than they were given.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names; weight norm may be folded or not.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        config_kind, model_kind = library(
            "transformers", ["DacConfig", "DacModel"], card.name, card.extra or "transformers"
        )
        config: Any = config_kind(**card.architecture)
        path = weights["model"]
        self._module: Any = assemble(
            lambda: model_kind(config), load_state(path), layouts=[weight_norm], source=str(path)
        )
        self._count = int(card.options.get("num_codebooks", config.n_codebooks))
        self._codebook_size = int(config.codebook_size)
        self._hop = int(config.hop_length)
        self.spec = replace(
            card.spec,
            codebook_size=(self._codebook_size,) * self._count,
            token_rate=self._count * config.sampling_rate / self._hop,
        )

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1], T a multiple of the hop, to K streams of indices (B, T / hop)."""
        if x.shape[-1] % self._hop:
            raise ValueError(f"{self.spec.name} takes multiples of {self._hop} samples, not {x.shape[-1]}")
        codes = self._module.encode(x.to(dtype_of(self._module)), n_quantizers=self._count).audio_codes
        return Code(
            tuple(Stream(str(k), self._codebook_size, row.contiguous()) for k, row in enumerate(codes.unbind(dim=1)))
        )

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, T') float32."""
        indices = torch.stack([stream.indices for stream in code.streams], dim=1)
        signal: Tensor = self._module.decode(audio_codes=indices).audio_values
        return signal[:, None].float()
