"""Mimi, the codec of Moshi (Défossez et al. 2024, arXiv 2410.00037), through transformers' `MimiModel`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import State, transformers_model
from .nn.codec import CodebookCodec

_FLAT = (
    (re.compile(r"^(encoder|decoder)\.layers\."), r"\1.\1_seanet.layers."),
    (re.compile(r"^(encoder|decoder)_transformer\."), r"\1.\1_transformer."),
    (re.compile(r"^downsample\."), "encoder.downsample."),
    (re.compile(r"^upsample\."), "decoder.upsample."),
)


def tokenizer(card: Card, weights: Weights) -> CodebookCodec:
    """Build Mimi with its first K codebooks, one stream each; codebook 0 is the semantic one.

    `card.architecture` holds the arguments of `transformers.MimiConfig`; the option `num_codebooks` chooses K. Lengths that
    are no multiple of the hop are refused: the official code pads them with zeros first, transformers pads inside every
    layer.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names, those of the published file or those of the
            installed release.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """
    module = transformers_model(
        card,
        weights,
        "MimiConfig",
        "MimiModel",
        card.architecture,
        layouts=[flat_layout],
        optional=["*.codebook.initialized"],
    )
    config = module.config
    count = int(card.options.get("num_codebooks", config.num_quantizers))
    sizes = (int(config.codebook_size),) * count

    def forget() -> None:
        """Let the codebooks be derived anew: the library keeps them once derived."""
        for part in module.modules():
            if hasattr(part, "_embed"):
                part._embed = None

    return CodebookCodec(
        replace(card.spec, codebook_size=sizes, token_rate=count * config.frame_rate),
        module,
        encode=lambda x: module.encode(x, num_quantizers=count).audio_codes,
        decode=lambda indices: module.decode(indices).audio_values,
        hop=int(config.frame_size),
        moved=forget,
    )


Mimi = tokenizer
"""What the cards name as their target, which is part of the identity of stored results."""


def flat_layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename the flat keys of the published file (`encoder.layers`) to the two halves of newer releases."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        renamed = key
        for pattern, target in _FLAT:
            renamed = pattern.sub(target, renamed)
        out[renamed if key not in wanted and renamed in wanted else key] = value
    return out
