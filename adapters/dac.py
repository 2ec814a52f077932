"""Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546) through transformers' `DacModel`."""

from __future__ import annotations

from dataclasses import replace

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import transformers_model, weight_norm
from .nn.codec import CodebookCodec


def tokenizer(card: Card, weights: Weights) -> CodebookCodec:
    """Build DAC with its first K residual codebooks, one stream each.

    `card.architecture` holds the arguments of `transformers.DacConfig`; the option `num_codebooks` chooses K. This is
    the plain encode and decode path: no loudness normalisation and no chunks, unlike the official command line. The
    decoders of the 16 and 24 kHz models return 8 samples less than they were given.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names; weight norm may be folded or not.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """
    module = transformers_model(card, weights, "DacConfig", "DacModel", card.architecture, layouts=[weight_norm])
    config = module.config
    count, hop = int(card.options.get("num_codebooks", config.n_codebooks)), int(config.hop_length)
    sizes = (int(config.codebook_size),) * count
    return CodebookCodec(
        replace(card.spec, codebook_size=sizes, token_rate=count * config.sampling_rate / hop),
        module,
        encode=lambda x: module.encode(x, n_quantizers=count).audio_codes,
        decode=lambda indices: module.decode(audio_codes=indices).audio_values[:, None],
        hop=hop,
    )


Dac = tokenizer
"""What the cards name as their target, which is part of the identity of stored results."""
