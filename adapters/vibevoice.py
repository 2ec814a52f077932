"""VibeVoice's acoustic tokenizer (Peng et al. 2025, arXiv 2508.19205), continuous at 7.5 Hz, through transformers."""

from __future__ import annotations

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import transformers_model
from .nn.codec import LatentCodec


def tokenizer(card: Card, weights: Weights) -> LatentCodec:
    """Build the tokenizer; `card.architecture` holds the arguments of `VibeVoiceAcousticTokenizerConfig`.

    The encoder's mean is taken: the noise that training and generation add to it is not.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """
    module = transformers_model(
        card, weights, "VibeVoiceAcousticTokenizerConfig", "VibeVoiceAcousticTokenizerModel", card.architecture
    )
    return LatentCodec(
        card.spec,
        module,
        encode=lambda x: module.encode(x, sample=False).latents.transpose(1, 2),
        decode=lambda latents: module.decode(latents.transpose(1, 2)).audio,
    )
