"""Oobleck, the autoencoder of Stable Audio (Evans et al. 2024, arXiv 2407.14358), through diffusers."""

from __future__ import annotations

from typing import Any

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, library, weight_norm
from .nn.codec import LatentCodec


def tokenizer(card: Card, weights: Weights) -> LatentCodec:
    """Build the tokenizer; `card.architecture` holds the arguments of `diffusers.AutoencoderOobleck`.

    The posterior's mean is taken.

    Raises:
        MissingExtra: diffusers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """
    (kind,) = library("diffusers", ["AutoencoderOobleck"], card.name, card.extra or "diffusers")
    path = weights["model"]
    module: Any = assemble(lambda: kind(**card.architecture), load_state(path), layouts=[weight_norm], source=str(path))
    return LatentCodec(
        card.spec,
        module,
        encode=lambda x: module.encode(x).latent_dist.mode(),
        decode=lambda latents: module.decode(latents).sample,
    )
