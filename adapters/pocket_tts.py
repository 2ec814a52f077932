"""The audio tokenizer of Pocket TTS (Kyutai 2026): Mimi's network with continuous latents, through transformers."""

from __future__ import annotations

from typing import Any

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_state

from .nn.audio_latents import LatentCodec
from .nn.checkpoint import assemble, library


def tokenizer(card: Card, weights: Weights) -> LatentCodec:
    """Build the tokenizer; `card.architecture` holds the arguments of `PocketTTSAudioTokenizerConfig`.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """
    config_kind, model_kind = library(
        "transformers",
        ["PocketTTSAudioTokenizerConfig", "PocketTTSAudioTokenizerModel"],
        card.name,
        card.extra or "transformers",
    )
    config: Any = config_kind(**card.architecture)
    path = weights["model"]
    module: Any = assemble(lambda: model_kind(config), load_state(path), source=str(path))
    return LatentCodec(
        card.spec,
        module,
        encode=lambda x: module.encode(x).latents.transpose(1, 2),
        decode=lambda latents: module.decode(latents.transpose(1, 2)).audio_values,
    )
