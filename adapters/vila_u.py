"""VILA-U's vision tower: residual quantization of SigLIP features with one shared table, painted by taming's decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights
from tokbench.weights import WeightsRefused

from .nn.checkpoint import State
from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import TableNeighbours
from .nn.network import load_network
from .nn.quantize import lookup, nearest
from .nn.siglip import SiglipTrunk, siglip_layouts
from .nn.taming import Decoder, Trunk
from .nn.vit2d import renamed


class VilaU(nn.Module):
    """SigLIP up to its last block but one, `depth` residual codes a position, convolutional decoder.

    The table's last row is padding and is never chosen.

    Reference: VILA-U, arXiv:2409.04429, mit-han-lab/vila-u.
    """

    def __init__(self, siglip: Mapping[str, int], entries: int, depth: int, trunk: Mapping[str, Any]) -> None:
        super().__init__()
        shape = Trunk(**trunk)
        self._side, self._depth = siglip["side"], depth
        self.siglip = SiglipTrunk(**siglip, taken=[siglip["layers"]])
        self.codebook = nn.Parameter(torch.empty(entries + 1, siglip["width"]))
        self.post_quant_conv = nn.Conv2d(siglip["width"], shape.z_channels, 1)
        self.decoder = Decoder(shape)

    def _residuals(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each depth searches the table with, (B, N, width), and what it finds."""
        rest: Tensor = self.siglip(x)[0]
        seen, found = [], []
        for _ in range(self._depth):
            indices = nearest(rest, self.codebook[:-1])
            seen.append(rest)
            found.append(indices)
            rest = rest - lookup(indices, self.codebook)
        return seen, found

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table, which all depths share."""
        del codebook
        return TableNeighbours(self.codebook[:-1])

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the residual one depth searches the table with, (B, side, side, width)."""
        return torch.unflatten(self._residuals(x)[0][int(codebook)], 1, (self._side, self._side))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, depth, side, side)."""
        return torch.unflatten(torch.stack(self._residuals(x)[1], dim=1), 2, (self._side, self._side))

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, depth, side, side) to (B, 3, H, W), nominally in [-1, 1]."""
        code = lookup(indices, self.codebook).sum(1).movedim(-1, 1)
        out: Tensor = self.decoder(self.post_quant_conv(code))
        return out


def _shared(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Keep one of the tables, which must be the same at every depth."""
    del wanted
    tables = {key: value for key, value in state.items() if key.startswith("quantizer.codebooks.") and value.ndim == 2}
    weights = [value for key, value in sorted(tables.items()) if key.endswith(".weight")]
    if any(not torch.equal(weights[0], other) for other in weights[1:]):
        raise WeightsRefused("the codebooks of the depths differ", "report this card: it takes one shared codebook")
    out = {key: value for key, value in state.items() if key not in tables}
    return out | {"codebook": weights[0]} if weights else out


_LAYOUT = renamed([(r"^(vision_tower\.)?rqvaesiglip\.", "")])


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return VilaU(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the vision tower; text tower, last SigLIP block, generator and training averages are left out."""
    last = card.architecture["siglip"]["layers"]
    loaded = load_network(
        card,
        weights,
        partial(network, card.architecture),
        layouts=[_LAYOUT, *siglip_layouts(r"siglip_model\.vision_model\.", "siglip."), _shared],
        drop=[
            "siglip_model.text_model.*", "siglip_model.logit_*", f"siglip.blocks.{last}.*", "siglip.norm.*", "siglip.head.*",
            "quantizer.codebooks.*_ema", "rqtransformer.*",
        ],
    )  # fmt: skip
    return CodebookTokenizer(loaded, loaded.module)
