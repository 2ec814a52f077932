"""The first layers of WavLM-large (Chen et al. 2021, arXiv 2110.13900), a trunk that codecs take their features from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class WavLmShape:
    """Sizes of the trunk; the defaults are those of WavLM-large cut after six layers.

    Attributes:
        channels: Of each convolution.
        kernels: Of each convolution.
        strides: Of each convolution.
        layers: Of the transformer.
        width: Of the transformer.
        hidden: Inside its feed-forward parts.
        heads: Of its attention.
        buckets: Of relative distances, half of them for either direction.
        max_distance: From which on all distances share a bucket.
        position_kernel: Of the convolution that stands for positions.
        position_groups: Of that convolution.
    """

    channels: Sequence[int] = (512,) * 7
    kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2)
    strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2)
    layers: int = 6
    width: int = 1024
    hidden: int = 4096
    heads: int = 16
    buckets: int = 320
    max_distance: int = 800
    position_kernel: int = 128
    position_groups: int = 16

    @property
    def stride(self) -> int:
        """Return the samples between frames."""
        return math.prod(self.strides)

    @property
    def span(self) -> int:
        """Return the samples one frame sees."""
        reach, step = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            reach += (kernel - 1) * step
            step *= stride
        return reach


class _ConvLayer(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out, kernel, stride, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, max(0, self.conv.kernel_size[0] - x.shape[-1])))
        return F.gelu(self.norm(self.conv(x).transpose(1, 2))).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, hidden)
        self.out_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_proj(F.gelu(self.in_proj(x)))
        return y


class _GatedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.gru_rel_pos_linear = nn.Linear(width // heads, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.empty(1, heads, 1, 1))
        self._heads = heads

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        rows, time, width = x.shape
        q, k, v = self.qkv_proj(x).view(rows, time, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        by_head = x.view(rows, time, self._heads, -1).transpose(1, 2)
        gates = self.gru_rel_pos_linear(by_head).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        gate = gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1) + 2
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=(gate * bias).to(q.dtype))
        y: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(rows, time, width))
        return y


class _Layer(nn.Module):
    def __init__(self, shape: WavLmShape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = _GatedAttention(shape.width, shape.heads)
        self.feed_forward_norm = nn.LayerNorm(shape.width)
        self.feed_forward = _FeedForward(shape.width, shape.hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class _Transformer(nn.Module):
    def __init__(self, shape: WavLmShape) -> None:
        super().__init__()
        kernel = shape.position_kernel
        position = nn.Conv1d(shape.width, shape.width, kernel, padding=kernel // 2, groups=shape.position_groups)
        self.positional_embedding = nn.ModuleDict({"conv": position})
        self.relative_embedding = nn.Embedding(shape.buckets, shape.heads)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self._max_distance = shape.max_distance

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        position = self.positional_embedding["conv"](x.transpose(1, 2))[..., :time]
        x = x + F.gelu(position).transpose(1, 2)
        places = relative_buckets(time, self.relative_embedding.num_embeddings, self._max_distance)
        bias = self.relative_embedding(places.to(x.device)).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias)
        return x


def relative_buckets(time: int, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of every pair of places, (query, key) int64: T5's, which looks both ways.

    The upper half of the buckets is for keys after the query. Distances below a quarter of `buckets` have one each, larger
    ones share them logarithmically up to `max_distance`.
    """
    half, exact = buckets // 2, buckets // 4
    places = torch.arange(time)
    offset = places[None] - places[:, None]
    distance = offset.abs()
    scaled = (distance.float() / exact).log() / math.log(max_distance / exact) * (half - exact) + exact
    far = scaled.clamp(min=0, max=half - 1).long()
    return (offset > 0).long() * half + torch.where(distance < exact, distance, far)


class WavLmTrunk(nn.Module):
    """WavLM's convolutions and first layers, without the norm that ends the model, in FocalCodec's key names.

    State dict: `feature_extractor.layers.i.*`, `norm.*`, `feature_proj.*`, `encoder.positional_embedding.conv.*` (weight
    norm folded), `encoder.relative_embedding.weight`, `encoder.layers.i.*`.
    """

    def __init__(self, shape: WavLmShape) -> None:
        super().__init__()
        convs, channels = [], 1
        for out, kernel, stride in zip(shape.channels, shape.kernels, shape.strides, strict=True):
            convs.append(_ConvLayer(channels, out, kernel, stride))
            channels = out
        self.feature_extractor = nn.ModuleDict({"layers": nn.Sequential(*convs)})
        self.norm = nn.LayerNorm(channels)
        self.feature_proj = nn.Linear(channels, shape.width)
        self.encoder = _Transformer(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, T), as it is, to features (B, (T - span) // stride + 1, width)."""
        y = self.feature_extractor["layers"](x).transpose(1, 2)
        out: Tensor = self.encoder(self.feature_proj(self.norm(y)))
        return out
