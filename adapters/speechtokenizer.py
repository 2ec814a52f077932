"""SpeechTokenizer (Zhang et al. 2023, arXiv 2308.16692) and the codecs that share its network: an own module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, weight_norm
from .nn.codec import CodebookCodec
from .nn.seanet import SeanetDecoder, SeanetEncoder, elu

# The distillation head, and what training keeps of the codebooks.
_DROP = ("transform.*", "*._codebook.inited", "*._codebook.cluster_size", "*._codebook.embed_avg")


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, one alpha a channel (arXiv 2006.08195)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()


class ResidualQuantizer(nn.Module):
    """Codebooks of which each codes what those before it left, by squared Euclidean distance; the first of equals wins."""

    def __init__(self, count: int, size: int, dimension: int) -> None:
        super().__init__()
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(_Layer(size, dimension) for _ in range(count))

    def encode(self, latents: Tensor, count: int | None = None) -> Tensor:
        """Map (B, D, T) to (B, count, T) indices."""
        residual, found = latents.transpose(1, 2), []
        for table in self._tables()[:count]:
            flat = residual.reshape(-1, residual.shape[-1])
            # As the published code writes it: another order of the same terms may round a tie the other way.
            distance = (
                flat.square().sum(1, keepdim=True) - 2 * flat @ table.t() + table.t().square().sum(0, keepdim=True)
            )
            indices = (-distance).argmax(-1).reshape(residual.shape[:-1])
            found.append(indices)
            residual = residual - F.embedding(indices, table)
        return torch.stack(found, dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map the indices (B, K', T) of the first K' codebooks to (B, D, T)."""
        tables = self._tables()
        parts = [F.embedding(row, tables[k]) for k, row in enumerate(indices.unbind(1))]
        return torch.stack(parts).sum(0).transpose(1, 2)

    def _tables(self) -> list[Tensor]:
        layers = self.vq.layers
        assert isinstance(layers, nn.ModuleList)
        return [layer.get_buffer("_codebook.embed") for layer in layers]


class _Layer(nn.Module):
    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("embed", torch.empty(size, dimension))


class SpeechCodec(nn.Module):
    """SEANet around residual Euclidean codebooks: (B, 1, T) in [-1, 1] to (B, K, ceil(T / hop)) indices and back.

    Args:
        n_filters: Channels after the first convolution; they double with every stride.
        strides: Of the decoder; the encoder takes them in reverse.
        dimension: Width of the latents and of every codebook.
        bidirectional: Whether the encoder's LSTM runs both ways.
        dilation_base: Its powers are the dilations of the residual units.
        residual_kernel_size: Of the residual units.
        n_residual_layers: Residual units a stride.
        lstm_layers: Layers of the LSTMs.
        activation: `ELU`, or `Snake` with a learned frequency a channel.
        codebook_size: Entries of each codebook.
        n_q: Codebooks.

    Raises:
        ValueError: An activation of another name.
    """

    def __init__(
        self,
        *,
        n_filters: int = 64,
        strides: Sequence[int] = (8, 5, 4, 2),
        dimension: int = 1024,
        bidirectional: bool = True,
        dilation_base: int = 2,
        residual_kernel_size: int = 3,
        n_residual_layers: int = 1,
        lstm_layers: int = 2,
        activation: str = "ELU",
        codebook_size: int = 1024,
        n_q: int = 8,
    ) -> None:
        super().__init__()
        if activation not in {"ELU", "Snake"}:
            raise ValueError(f"activation {activation!r} is neither ELU nor Snake")
        between = elu if activation == "ELU" else Snake
        dilations = [dilation_base**j for j in range(n_residual_layers)]
        self.encoder = SeanetEncoder(
            n_filters, dimension, strides, lstm=lstm_layers, both_ways=bidirectional,
            kernel=residual_kernel_size, dilations=dilations, activation=between,
        )  # fmt: skip
        self.quantizer = ResidualQuantizer(n_q, codebook_size, dimension)
        self.decoder = SeanetDecoder(
            n_filters, dimension, strides, lstm=lstm_layers,
            kernel=residual_kernel_size, dilations=dilations, activation=between,
        )  # fmt: skip

    def encode(self, x: Tensor, count: int | None = None) -> Tensor:
        """Map (B, 1, T) to the indices (B, count, T') of the first `count` codebooks (None: all)."""
        return self.quantizer.encode(self.encoder(x), count)

    def decode(self, indices: Tensor) -> Tensor:
        """Map the indices (B, K', T') of the first K' codebooks to (B, 1, T' x hop)."""
        signal: Tensor = self.decoder(self.quantizer.decode(indices))
        return signal


def tokenizer(card: Card, weights: Weights) -> CodebookCodec:
    """Build the network with its first K residual codebooks, one stream each; codebook 0 is the semantic one.

    Args:
        card: `architecture` holds the arguments of `SpeechCodec`; the option `num_codebooks` chooses K.
        weights: Role `model` -> the published state dict; weight norm is folded.

    Raises:
        WeightsRefused: The file does not fit the architecture.
    """
    path, shape = weights["model"], card.architecture
    module: SpeechCodec = assemble(
        lambda: SpeechCodec(**shape), load_state(path), layouts=[weight_norm], drop=_DROP, source=str(path)
    )
    count, hop = int(card.options.get("num_codebooks", shape["n_q"])), math.prod(shape["strides"])
    sizes, rate = (int(shape["codebook_size"]),) * count, card.spec.sample_rate or 16_000
    return CodebookCodec(
        replace(card.spec, codebook_size=sizes, token_rate=count * rate / hop),
        module,
        encode=lambda x: module.encode(x, count),
        decode=module.decode,
    )


SpeechTokenizer = tokenizer
"""What the cards name as their target, which is part of the identity of stored results."""
