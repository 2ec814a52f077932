"""The audio tokenizer of Pocket TTS (Kyutai 2026): Mimi's network with continuous latents, through transformers."""

from __future__ import annotations

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import transformers_model
from .nn.codec import LatentCodec


def tokenizer(card: Card, weights: Weights) -> LatentCodec:
    """Build the tokenizer; `card.architecture` holds the arguments of `PocketTTSAudioTokenizerConfig`.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """
    module = transformers_model(
        card, weights, "PocketTTSAudioTokenizerConfig", "PocketTTSAudioTokenizerModel", card.architecture
    )
    return LatentCodec(
        card.spec,
        module,
        encode=lambda x: module.encode(x).latents.transpose(1, 2),
        decode=lambda latents: module.decode(latents.transpose(1, 2)).audio_values,
    )
