"""WavTokenizer (Ji et al. 2024, arXiv 2408.16532): one codebook of 4096, 40 or 75 tokens a second of 24 kHz sound."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Stream, Weights

from .nn.checkpoint import State, weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.keynames import Rule, published_as
from .nn.network import load_network
from .nn.quantize import VectorQuantizer
from .nn.seanet import SeanetEncoder
from .nn.vocos import SpectrumHead, VocosBackbone

NAMES: tuple[Rule, ...] = (
    (r"^encoder\.", "feature_extractor.encodec.encoder."),
    (r"^quantizer\.embedding\.weight$", "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"),
)
_UNUSED = (
    "feature_extractor.encodec.decoder.*",
    "feature_extractor.encodec.quantizer.*.inited",
    "feature_extractor.encodec.quantizer.*.cluster_size",
    "feature_extractor.encodec.quantizer.*.embed_avg",
    "head.istft.window",
)


class WavTokenizer(nn.Module):
    """EnCodec's encoder with a wider latent and no causality, one table, and Vocos with attention as decoder.

    Args:
        strides: In the order of the official configuration; the encoder applies them last to first.
        filters: Channels of the first convolution.
        latent: Channels of the latents.
        entries: Of the table.
        width: Of the decoder.
        hidden: Inside a decoder layer.
        layers: Of the decoder.
        bandwidths: Rows of the adaptive norms, of which the first is used.
    """

    def __init__(
        self,
        strides: Sequence[int],
        filters: int = 32,
        latent: int = 512,
        entries: int = 4096,
        width: int = 768,
        hidden: int = 2304,
        layers: int = 12,
        bandwidths: int = 4,
    ) -> None:
        super().__init__()
        hop = math.prod(strides)
        self.encoder = SeanetEncoder(filters, latent, strides)
        self.quantizer = VectorQuantizer(entries, latent)
        self.backbone = VocosBackbone(latent, width, hidden, layers, rows=bandwidths, attention=True)
        self.head = SpectrumHead(width, 4 * hop, hop)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to indices (B, 1, ceil(T / hop))."""
        return self.quantizer.encode(self.encoder(x))[0].indices[:, None]

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, L) to (B, 1, L x hop), not clipped."""
        table = Stream("0", self.quantizer.embedding.num_embeddings, indices[:, 0])
        y: Tensor = self.head(self.backbone(self.quantizer.decode([table])))
        return y

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self.quantizer.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the latents before the search, (B, L, latent)."""
        return self.quantizer.seen(self.encoder(x), codebook)


def inference_only(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Leave out the discriminators and losses that a training checkpoint carries beside the three parts of the codec."""
    del wanted
    return {k: value for k, value in state.items() if k.startswith(("feature_extractor.", "backbone.", "head."))}


def wavtokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the arguments of `WavTokenizer`.
        weights: Role `model` -> the published Lightning checkpoint.

    Raises:
        WeightsRefused: The file does not fit.
    """
    network = load_network(
        card,
        weights,
        lambda: WavTokenizer(**card.architecture),
        inside=("state_dict",),
        layouts=[inference_only, weight_norm, published_as(NAMES)],
        drop=_UNUSED,
    )
    return CodebookTokenizer(network, network.module)
