"""EnCodec (Défossez et al. 2022, arXiv 2210.13438) through transformers' `EncodecModel`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Code, Weights

from .nn.checkpoint import dtype_of, place, transformers_model, weight_norm
from .nn.codes import parallel_streams, stacked_indices

_SCALE_BITS = 32


class Encodec:
    """EnCodec at one bandwidth: the first K residual codebooks, one stream each.

    `card.architecture` holds the arguments of `transformers.EncodecConfig`; the option `bandwidth` (kbit/s) chooses K
    as floor(bandwidth / (bits of a codebook x frame rate)). Where the architecture has `chunk_length_s` (48 kHz), the
    signal is coded in overlapping chunks, each normalised by a scale: scales are side information of 32 bits each, as
    in the official bit stream, and the chunks' tokens follow each other in a stream. How many tokens each chunk has
    follows from the clip's length, which every decoder here is given, and is therefore not counted.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names, weight norm as `weight_g`/`weight_v` or as
            parametrizations.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        self._module: Any = transformers_model(
            card,
            weights,
            "EncodecConfig",
            "EncodecModel",
            card.architecture,
            layouts=[weight_norm],
            # Statistics of the codebooks' training; inference reads `embed` only.
            optional=["*.codebook.inited", "*.codebook.cluster_size", "*.codebook.embed_avg"],
        )
        config = self._module.config
        self._bandwidth = float(card.options.get("bandwidth", config.target_bandwidths[-1]))
        self._chunk: int | None = config.chunk_length
        self._stride: int | None = config.chunk_stride
        # Chunks are cut here: the library's own loop cannot stack them where the last but one is a frame short.
        self._module.config.chunk_length_s = None
        count = self._module.quantizer.get_num_quantizers_for_bandwidth(self._bandwidth)
        self._codebook_size = int(config.codebook_size)
        self.spec = replace(card.spec, codebook_size=(self._codebook_size,) * count)

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, C, T) in [-1, 1] to K streams of indices (B, frames), and scales (B, chunks) where it has them."""
        codes, scales = [], []
        for chunk in self._chunks(x.to(dtype_of(self._module))):
            out = self._module.encode(chunk, bandwidth=self._bandwidth)
            codes.append(out.audio_codes[0])
            scales.append(out.audio_scales[0])
        indices = torch.cat(codes, dim=-1)
        streams = parallel_streams(indices, self._codebook_size)
        if scales[0] is None:
            return Code(streams)
        frames = torch.tensor([[part.shape[-1] for part in codes]], device=indices.device).expand(len(x), -1)
        side = {"scales": torch.cat(scales, dim=-1), "frames": frames}
        return Code(streams, side=side, side_bits=_SCALE_BITS * len(scales))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, C, T') float32, T' at least the length that was encoded.

        Raises:
            ValueError: The code has another number of streams.
        """
        indices = stacked_indices(code, len(self.spec.codebook_size), self.spec.name)
        if "scales" not in code.side:
            return self._signal(indices, None)
        lengths = [int(n) for n in code.side["frames"][0]]
        parts = zip(torch.split(indices, lengths, dim=-1), torch.split(code.side["scales"], 1, dim=-1), strict=True)
        return overlap_add([self._signal(part, scale) for part, scale in parts], self._stride or 1)

    def _chunks(self, x: Tensor) -> list[Tensor]:
        if self._chunk is None or self._stride is None:
            return [x]
        return [x[..., start : start + self._chunk] for start in range(0, x.shape[-1], self._stride)]

    def _signal(self, indices: Tensor, scale: Tensor | None) -> Tensor:
        signal: Tensor = self._module.decode(indices[None], [scale]).audio_values
        return signal.float()


def overlap_add(chunks: list[Tensor], stride: int) -> Tensor:
    """Join chunks (B, C, n) that start `stride` samples apart, each weighted by a triangle over the first one's length.

    A sample that only one chunk covers is that chunk's own, whatever its weight.
    """
    full = chunks[0].shape[-1]
    total = stride * (len(chunks) - 1) + chunks[-1].shape[-1]
    ramp = torch.linspace(0, 1, full + 2, device=chunks[0].device, dtype=chunks[0].dtype)[1:-1]
    triangle = 0.5 - (ramp - 0.5).abs()
    out = chunks[0].new_zeros(*chunks[0].shape[:-1], total)
    weight = chunks[0].new_zeros(total)
    for index, chunk in enumerate(chunks):
        span = slice(index * stride, index * stride + chunk.shape[-1])
        out[..., span] += triangle[: chunk.shape[-1]] * chunk
        weight[span] += triangle[: chunk.shape[-1]]
    return out / weight
