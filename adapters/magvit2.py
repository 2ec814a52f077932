"""Open-MAGVIT2 and WeTok: MAGVIT-v2 networks with sign quantization, loaded from the authors' Lightning checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.codebooks import CodebookTokenizer
from .nn.magvit2 import Magvit2
from .nn.network import lightning_ema, load_network


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return Magvit2(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint's moving averages, as the published evaluations do; discriminator and loss are left out."""
    loaded = load_network(
        card,
        weights,
        lambda: network(card.architecture),
        inside=("state_dict",),
        layouts=[lightning_ema],
        drop=["loss.*"],
    )
    return CodebookTokenizer(loaded, loaded.module)
