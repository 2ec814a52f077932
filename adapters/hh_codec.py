"""HH-Codec (Xue et al. 2025, arXiv 2507.18897): one codebook of 8192, 23.4 tokens a second of 24 kHz speech."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Stream, Weights

from .nn.bigvgan import BigVgan
from .nn.checkpoint import State, weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.keynames import Rule, published_as
from .nn.network import lightning_ema, load_network
from .nn.quantize import VectorQuantizer
from .nn.seanet import SeanetEncoder
from .nn.vocos import VocosBackbone

NAMES: tuple[Rule, ...] = (
    (r"^mel_head\.", "melhead.transconv."),
    (r"^vocoder\.", "bigvqgan."),
    (r"^quantizer\.embedding\.weight$", "quantize.layers.0.codebook"),
)
_TABLE = "quantize.layers.0."
_UNUSED = ("loss.*", "decoder.*", "conv_transpose.*", "quantize.layers.1.*", "bigvqgan.*.filter", "model_ema.*")


class HhCodec(nn.Module):
    """EnCodec's causal encoder with an LSTM that looks both ways, one table, Vocos with attention, and BigVGAN.

    Args:
        strides: In the order of the official configuration; the encoder applies them last to first.
        filters: Channels of the first convolution.
        latent: Channels of the latents.
        entries: Of the table.
        width: Of Vocos.
        hidden: Inside its layers.
        layers: How many.
        mels: Channels BigVGAN is given, at four times the rate of the tokens.
        vocoder: Arguments of `BigVgan` that differ from its 24 kHz, 100 band model.
    """

    def __init__(
        self,
        strides: Sequence[int] = (8, 8, 4, 4),
        filters: int = 32,
        latent: int = 512,
        entries: int = 8192,
        width: int = 768,
        hidden: int = 2304,
        layers: int = 12,
        mels: int = 100,
        vocoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = SeanetEncoder(filters, latent, strides, causal=True, both_ways=True)
        self.quantizer = VectorQuantizer(entries, latent)
        self.backbone = VocosBackbone(latent, width, hidden, layers, attention=True)
        self.mel_head = nn.ConvTranspose1d(width, mels, 4, 4)
        self.vocoder = BigVgan(mels, **(vocoder or {}))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to indices (B, 1, ceil(T / hop))."""
        return self.quantizer.encode(self.encoder(x))[0].indices[:, None]

    def mel(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, L) to what the vocoder is given, (B, mels, 4L)."""
        table = Stream("0", self.quantizer.embedding.num_embeddings, indices[:, 0])
        y: Tensor = self.mel_head(self.backbone(self.quantizer.decode([table])).transpose(1, 2))
        return y

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, L) to (B, 1, L x hop), clipped to [-1, 1] as the official code does."""
        y: Tensor = self.vocoder(self.mel(indices))
        return y.clamp(-1, 1)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self.quantizer.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the latents before the search, (B, L, latent)."""
        return self.quantizer.seen(self.encoder(x), codebook)


def averages(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Take the moving averages where the file has them, before any key is renamed."""
    del wanted
    return lightning_ema(state, [key for key in state if not key.startswith("model_ema.")])


def transformed_table(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Compute the table of SimVQ once: a frozen one, sent through two linear layers with a ReLU between them."""
    del wanted
    out = dict(state)
    parts = ("frozen_codebook", *(f"code_transform.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")))
    if all(_TABLE + part in out for part in parts):
        frozen, w0, b0, w2, b2 = (out.pop(_TABLE + part) for part in parts)
        out[_TABLE + "codebook"] = F.linear(F.linear(frozen, w0, b0).relu(), w2, b2)
    return out


def hh_codec(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the arguments of `HhCodec`.
        weights: Role `model` -> a Lightning checkpoint of the official training code.

    Raises:
        WeightsRefused: The file does not fit.
    """
    network = load_network(
        card,
        weights,
        lambda: HhCodec(**card.architecture),
        inside=("state_dict",),
        layouts=[averages, transformed_table, weight_norm, published_as(NAMES)],
        drop=_UNUSED,
    )
    return CodebookTokenizer(network, network.module)
