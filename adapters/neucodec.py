"""X-Codec 2 (Ye et al. 2025, arXiv 2502.04128) and NeuCodec, the same network with 24 kHz out, through transformers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Weights

from .nn.checkpoint import dtype_of, place, transformers_model
from .nn.codes import parallel_streams, stacked_indices
from .nn.filterbanks import kaldi_filter_banks, pad_end
from .nn.resample import resampled

_MODELS = {"xcodec2": "Xcodec2", "neucodec": "NeuCodec"}


class NeuCodec:
    """One codebook at 50 Hz: w2v-BERT features beside a convolutional encoder, finite scalar quantization, inverse STFT.

    `card.architecture` holds `model_type` (`xcodec2` or `neucodec`) and the arguments of its configuration. The adapter
    pads as the official scripts do, so that T samples give floor(T / 320) + 1 tokens at 16 kHz: a whole frame more when T
    is a multiple. NeuCodec hears 16 kHz and speaks 24 kHz; its card's rate is that of its output, and the input is brought
    to 16 kHz here. The clip's length, which every decoder is given, cuts the output.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names, the semantic encoder included.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        arguments = dict(card.architecture)
        prefix = _MODELS[str(arguments.pop("model_type"))]
        mask = "semantic_encoder.masked_spec_embed"
        self._module: Any = transformers_model(
            card, weights, f"{prefix}Config", f"{prefix}Model", arguments, drop=[mask], optional=[mask]
        )
        config = self._module.config
        self._size = math.prod(map(int, config.quantization_levels))
        self._rate = int(card.spec.sample_rate or 16_000)
        self._input_rate = int(getattr(config, "input_sampling_rate", self._rate))
        self._hop = int(getattr(config, "encoder_hop_length", config.hop_length))
        self.spec = replace(card.spec, codebook_size=(self._size,), token_rate=self._input_rate / self._hop)

    def to(self, device: str, dtype: str) -> None:
        """Move the network; features are computed in float64 and given in its dtype."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] to one stream (B, frames) and the number of samples, which is not sent."""
        dtype = dtype_of(self._module)
        heard = pad_end(resampled(x.float(), self._rate, self._input_rate), self._hop, at_least=1)
        features = kaldi_filter_banks(F.pad(heard[:, 0], (self._hop // 2, self._hop // 2)))
        out = self._module.encode(heard.to(dtype), input_features=features.to(dtype))
        samples = torch.full((len(x),), x.shape[-1], device=x.device)
        return Code(parallel_streams(out.audio_codes, self._size), side={"samples": samples})

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, T) float32.

        Raises:
            ValueError: The code has another number of streams.
        """
        signal: Tensor = self._module.decode(audio_codes=stacked_indices(code, 1, self.spec.name)).audio_values
        return signal.float()[..., : int(code.side["samples"][0])]
