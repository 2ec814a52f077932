"""ImageFolder, XQ-GAN and RobustTok: discrete tokens on DINOv2-style transformers, one table, two, or ten scales of two."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.codebooks import CodebookTokenizer, load_tokens
from .nn.keynames import Rule
from .nn.network import NetworkTokenizer
from .nn.token_quantizers import GridTable, MultiScale, Product
from .nn.vit1d import DINOV2_NAMES, Autoencoder1d, dinov2_layout

UNUSED = (
    "semantic_model.*",
    "detail_model.*",
    "sem_linear.*",
    "*.ema_vocab_hit_SV",
    "encoder.lvl1LC",
    "decoder.lvl1LC",
    "encoder.model.mask_token",
)
"""Published keys inference does not need: guides of the training, usage counters, and which level each token has."""


def module_of(card: Card) -> Autoencoder1d:
    """Build the network a card describes; the spec has a codebook a branch.

    `card.architecture` holds `encoder`, `decoder` (sizes), `image_size`, `patch`, `channels` of a token, `sides` of the
    grids (one, or several coarse to fine) and, for signs instead of tables, `quantizer = "signs"`.
    """
    architecture, spec = card.architecture, card.spec
    channels, sides = int(architecture["channels"]), [int(side) for side in architecture["sides"]]
    branches = len(spec.codebook_size)
    layout = replace(
        dinov2_layout(architecture, latents=branches * sides[-1] ** 2, code_channels=channels),
        decoded=sides[-1] ** 2,
        embedded_channels=branches * channels,
        positions="grid",
    )
    signs = architecture.get("quantizer") == "signs"

    def branch(size: int) -> nn.Module:
        if len(sides) == 1:
            return GridTable(size, channels)
        return MultiScale(None if signs else size, channels, sides)

    return Autoencoder1d(layout, Product([branch(size) for size in spec.codebook_size]), branches=branches)


def names(card: Card) -> tuple[Rule, ...]:
    """Return the rules from the module's keys to the published ones."""
    branches = len(card.spec.codebook_size)
    alone: tuple[Rule, ...] = ((r"^quantizer\.branches\.0\.", "quantize."),) if branches == 1 else ()
    return (*alone, *DINOV2_NAMES)


def xqgan(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a training checkpoint: its moving averages, or where it has none the weights, as the official code does.

    Args:
        card: `architecture` as `module_of` reads it.
        weights: Role `model` -> the published file.

    Raises:
        WeightsRefused: The file does not fit.
    """
    places = (("ema",), ("model",))
    return load_tokens(card, weights, lambda: module_of(card), names(card), inside=places, drop=UNUSED)
