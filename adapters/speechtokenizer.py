"""SpeechTokenizer (Zhang et al. 2023, arXiv 2308.16692) and the codecs that share its network: an own module."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Weights
from tokbench.weights import load_state

from .nn.audio_codes import parallel_streams, stacked_indices
from .nn.audio_seanet import SpeechCodec
from .nn.checkpoint import assemble, dtype_of, place, weight_norm

# The distillation head, and what training keeps of the codebooks.
_DROP = ("transform.*", "*._codebook.inited", "*._codebook.cluster_size", "*._codebook.embed_avg")


class SpeechTokenizer:
    """The first K residual codebooks, one stream each; codebook 0 is the semantic one.

    `card.architecture` holds the arguments of `SpeechCodec`; the option `num_codebooks` chooses K. Weight norm is folded.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the published state dict.

    Raises:
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        path = weights["model"]
        self._module: SpeechCodec = assemble(
            lambda: SpeechCodec(**card.architecture),
            load_state(path),
            layouts=[weight_norm],
            drop=_DROP,
            source=str(path),
        )
        self._count = int(card.options.get("num_codebooks", card.architecture["n_q"]))
        self._size = int(card.architecture["codebook_size"])
        hop = math.prod(card.architecture["strides"])
        rate = card.spec.sample_rate or 16_000
        self.spec = replace(card.spec, codebook_size=(self._size,) * self._count, token_rate=self._count * rate / hop)

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] to K streams of indices (B, ceil(T / 320))."""
        indices = self._module.encode(x.to(dtype_of(self._module)), self._count)
        return Code(parallel_streams(indices, self._size))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, 320 x frames) float32.

        Raises:
            ValueError: The code has another number of streams.
        """
        return self._module.decode(stacked_indices(code, self._count, self.spec.name)).float()
